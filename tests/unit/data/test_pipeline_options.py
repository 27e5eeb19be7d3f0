from __future__ import annotations

import random
from typing import Any

import pytest

from memfit import errors
from memfit.data import pipeline_options
from memfit.data.pipeline_options import Division, PipelineOptions


@pytest.mark.parametrize(
    ("validation_split", "subset", "message"),
    [
        (0.2, None, "belong together"),
        (None, "training", "belong together"),
        (0.0, "both", "between 0 and 1"),
        (1, "both", "between 0 and 1"),
        (-0.5, "both", "between 0 and 1"),
        ("0.2", "both", "between 0 and 1"),
        (True, "both", "between 0 and 1"),
        (0.2, "test", "must be one of"),
    ],
)
def test_subsets_that_cannot_work(validation_split: Any, subset: Any, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        Division(validation_split, subset)


def test_subsets_that_work() -> None:
    assert Division(None, None)
    assert Division(0.2, "both")


def test_there_is_a_core() -> None:
    assert pipeline_options.usable_cores() >= 1


def test_an_empty_subset_is_an_error() -> None:
    with pytest.raises(errors.ArgumentError, match=r"no samples for validation: of 3 samples 0 .*validation_split=0.1"):
        Division(0.1, "both").check(3, 0)


def test_the_queue_is_limited_by_bytes_and_by_number_and_one_batch_is_always_allowed() -> None:
    options = PipelineOptions(max_queue_size=4, max_queue_bytes="10 KiB")  # type: ignore[arg-type]
    assert [options.depth(size) for size in (100, 2560, 2561, 5120, 10**9)] == [4, 4, 3, 2, 1]
    assert PipelineOptions(max_queue_size=0).depth(1) == 0
    with pytest.raises(errors.ArgumentError, match=r"`max_queue_bytes`: .*'12 GiB'.* Received: 'much'"):
        PipelineOptions(max_queue_bytes="much")  # type: ignore[arg-type]


def test_a_seed_that_is_left_out_follows_python_random() -> None:
    random.seed(1)
    drawn = pipeline_options.seed_or_drawn(None)
    random.seed(1)
    assert pipeline_options.seed_or_drawn(None) == drawn
    assert pipeline_options.seed_or_drawn(5) == 5
