"""The examples in docstrings of the public calls run as written, on every backend."""

from __future__ import annotations

import doctest

import memfit.fitting


def test_examples_of_the_public_calls() -> None:
    results = doctest.testmod(memfit.fitting)
    assert results.attempted
    assert not results.failed
