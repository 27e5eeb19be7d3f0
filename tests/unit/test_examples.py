"""The examples in docstrings that need no framework run as written."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "memfit.units",
    "memfit.arrangement",
    "memfit.timeline",
    "memfit.reporting.rich_html",
    "memfit.reporting.recorder",
    "memfit.reporting.holders",
    "memfit.levers.block_code",
    "memfit.levers.quantile_code",
    "memfit.levers.remat_choice",
    "memfit.planning.search",
    "memfit.planning.fastest",
    "memfit.backends.simulated",
    "memfit.budgeting.decide",
    "memfit.data.file_table",
    "memfit.data.kept_files",
    "memfit.data.optional",
    "memfit.data.pipeline_options",
    "memfit.data.position",
    "memfit.data.row_file",
    "memfit.data.shuffling",
    "memfit.data.structure",
    "memfit.data.tfrecord_format",
    "memfit.data.tfrecord_source",
    "memfit.data.tokenizing",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed
