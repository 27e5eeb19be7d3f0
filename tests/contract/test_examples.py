"""The examples in docstrings of the public calls run as written, on every backend."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "memfit.fitting",
    "memfit.backends.protocol",
    "memfit.levers.eight_bit_adam",
    "memfit.data.array_source",
    "memfit.data.image_tables",
    "memfit.data.indexed_source",
    "memfit.data.table_source",
    "memfit.data.text_source",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_public_calls(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed
