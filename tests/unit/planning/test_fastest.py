"""The search over levers and sizes: what trying every arrangement would find, in fewer questions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.planning.fastest import Found, Option, Search, search
from memfit.planning.search import sizes
from memfit.records import Estimate

PART_TIME = 0.02
Scripted = tuple[float, int, int, float]

models = st.lists(
    st.tuples(st.floats(1.0, 3.0), st.integers(0, 10**6), st.integers(1, 10**5), st.floats(0.0, 0.1)),
    min_size=1,
    max_size=6,
    unique=True,
)
"""For each option: its time, the bytes that do not grow with the part, those of a sample, and the time of each further part."""


def searched(model: list[Scripted], batch: int, ceiling: int, **settings: Any) -> Search[int]:
    options = [Option(index, time, part_time) for index, (time, _, _, part_time) in enumerate(model)]

    def predict(key: int, size: int) -> Estimate:
        return Estimate(model[key][1] + size * model[key][2], 0, "scripted")

    return search(options, batch, predict=predict, ceiling=ceiling, part_time=PART_TIME, **settings)


def tried(model: list[Scripted], batch: int, ceiling: int) -> float | None:
    """The time of the best of all arrangements."""
    times = [
        time + (PART_TIME + part_time) * (-(-batch // size) - 1)
        for time, fixed, sample, part_time in model
        for size in (batch, *sizes(batch))
        if fixed + size * sample <= ceiling
    ]
    return min(times, default=None)


@given(models, st.integers(1, 500), st.integers(1, 10**7))
def test_it_finds_what_trying_everything_finds(model, batch: int, ceiling: int) -> None:
    best = searched(model, batch, ceiling).fastest
    assert (None if best is None else best.time) == tried(model, batch, ceiling)


@given(models, st.integers(1, 500), st.integers(1, 10**7))
def test_what_is_found_fits(model, batch: int, ceiling: int) -> None:
    best = searched(model, batch, ceiling).fastest
    if best is not None:
        _, fixed, sample, _ = model[best.option.key]
        assert fixed + best.size * sample == best.peak.bytes <= ceiling


@given(models, st.integers(1, 500), st.integers(1, 10**7), st.integers(1, 10**7))
def test_more_budget_never_gives_a_slower_plan(model, batch: int, one: int, other: int) -> None:
    small, large = (searched(model, batch, ceiling).fastest for ceiling in sorted((one, other)))
    if small is not None:
        assert large is not None
        assert large.time <= small.time


@given(models, st.integers(1, 500), st.integers(1, 10**6))
def test_where_nothing_fits_the_least_that_would_do_is_said(model, batch: int, ceiling: int) -> None:
    found = searched(model, batch, ceiling)
    if found.fastest is None:
        least = min(fixed + sample for _, fixed, sample, _ in model)
        assert found.smallest.peak.upper == least > ceiling
        assert len(found.refused) == len(model)


@given(models, st.integers(1, 500), st.integers(1, 10**7), st.floats(0.1, 1.0))
def test_a_guess_from_below_changes_what_is_asked_but_not_what_is_found(model, batch: int, ceiling: int, of) -> None:
    def guess(key: int, size: int) -> int:
        return int(of * (model[key][1] + size * model[key][2]))

    guided, unguided = searched(model, batch, ceiling, guess=guess).fastest, searched(model, batch, ceiling).fastest
    assert (None if guided is None else guided.time) == (None if unguided is None else unguided.time)


@given(models, st.integers(1, 500), st.integers(1, 10**7), st.floats(0.0, 0.5))
def test_what_is_not_worth_asking_costs_no_more_than_it_saves(model, batch: int, ceiling: int, worth: float) -> None:
    lazy, eager = searched(model, batch, ceiling, worth=worth).fastest, searched(model, batch, ceiling).fastest
    assert (lazy is None) == (eager is None)
    if lazy is not None and eager is not None:
        assert eager.time >= lazy.time * (1.0 - worth) ** len(model)


@given(models, st.integers(1, 500), st.integers(1, 10**7))
def test_what_is_said_to_be_slower_fits_and_is(model, batch: int, ceiling: int) -> None:
    found = searched(model, batch, ceiling)
    for other in found.slower:
        assert other.peak.upper <= ceiling
        assert other.time > found.fastest.time


def test_a_batch_that_may_not_be_split_is_recomputed() -> None:
    model = [(1.0, 100, 10, 0.0), (1.3, 100, 2, 0.0)]
    found = searched(model, 64, 500, splits=False).fastest
    assert isinstance(found, Found)
    assert (found.option.key, found.size) == (1, 64)


def test_no_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no option"):
        searched([], 4, 100)
