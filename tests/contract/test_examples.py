"""The examples in docstrings of the public calls run as written, on every backend."""

from __future__ import annotations

import doctest

import pytest

import memfit.backends.protocol
import memfit.fitting
import memfit.levers.eight_bit_adam


def test_examples_of_the_public_calls() -> None:
    results = doctest.testmod(memfit.fitting)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    "module",
    [memfit.backends.protocol, memfit.levers.eight_bit_adam],
    ids=lambda module: module.__name__,
)
def test_examples_of_the_optimizer_state(module: object) -> None:
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
