"""For tests against a framework: what `make test` leaves to `make thorough`, and collections that take no time."""

from __future__ import annotations

import gc

import keras
import pytest

_SIBLINGS = (
    "test_planned.py::test_what_may_not_be_split_is_recomputed_to_the_weights_of_model_fit[0.0]",
    "test_remat.py::test_recomputation_changes_nothing[mlp, jit]",
    "test_remat.py::test_recomputation_inside_micro_batches_changes_nothing[mlp, jit]",
    "test_recovery.py::test_the_batch_goes_through_again_and_the_run_is_that_of_model_fit[1-",
    "test_precision.py::test_training_in_bfloat16_is_near_float32[recurrent]",
    "test_precision.py::test_training_in_bfloat16_is_near_float32[frames]",
)
"""Dear cases of a test whose other cases go through the same code."""

_ALIKE = (
    "test_pages.py::test_the_blocks_of_a_page[docs/",
    "test_shrink.py::test_gptq",
    "test_shrink.py::test_awq",
    "test_shrink.py::test_examples",
    "test_shrink.py::test_advice_is_what_the_changed_model_takes",
    "test_shrink.py::test_removing_silent_channels_changes_no_output",
    "test_shrink.py::test_a_comparison_has_a_row_for_each_model",
    "test_shrink.py::test_structured_pruning",
    "test_apart.py::test_what_is_known_to_be_apart_is_found_so_by_the_test_on_the_model",
)
"""Dear tests of code that is alike on every backend: on PyTorch, which takes the least time, in every run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left = _SIBLINGS if keras.backend.backend() == "torch" else (*_SIBLINGS, *_ALIKE)
    for item in items:
        name = item.nodeid.rpartition("tests/contract/")[2]
        if name.startswith(left):
            item.add_marker(pytest.mark.thorough)


def pytest_collection_finish() -> None:
    """What imports have made lives as long as the process: each collection would go through it again, for 0.4 s on JAX."""
    gc.collect()
    gc.freeze()
