"""How often a run is kept: the share of the time that snapshots take is bounded from the first one on."""

from __future__ import annotations

import random
import types
from typing import Any

import numpy as np
import pytest

from memfit.guarding import pace


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def variable(num_bytes: int) -> Any:
    return types.SimpleNamespace(shape=(num_bytes // 4,))


@pytest.mark.parametrize(("num_bytes", "costs"), [(1000, (0.005, 0.02)), (100_000_000, (0.3, 0.9))])
def test_snapshots_never_take_more_than_their_share(clock: Clock, num_bytes: int, costs: tuple[float, float]) -> None:
    draws = random.Random(0)
    kept = pace.Pace(0.01, 0.5)
    kept.begin([variable(num_bytes)])
    start, spent, shares = clock.now, 0.0, []
    for _ in range(200_000):
        clock.now += 0.01
        if kept.is_due():
            cost = draws.uniform(*costs)
            clock.now += cost
            spent += cost
            kept.wrote(cost)
            shares.append(spent / (clock.now - start))
    assert len(shares) > 10
    assert max(shares) <= 0.0125  # the last of them was slower than those before
    assert shares[-1] <= 0.0105


def test_a_snapshot_that_costs_nothing_comes_as_often_as_it_may(clock: Clock) -> None:
    kept = pace.Pace(0.01, 0.5)
    kept.begin([])
    waits = []
    for _ in range(4):
        start = clock.now
        while not kept.is_due():
            clock.now += 0.125
        waits.append(clock.now - start)
        kept.wrote(0.0)
    np.testing.assert_allclose(waits, [2.0, 0.5, 0.5, 0.5])
