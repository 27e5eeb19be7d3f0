"""A maximum or a ReLU that rounding tips over on a tiny batch is not taken for a layer that mixes samples, or a wrong lever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from memfit import backends
from memfit.backends import keras_seam
from memfit.levers import micro_batch, verification
from memfit.records import Levers, Split

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
BATCH = (X, np.ones((5, 1), "float32"), None)
ALWAYS = 99


class Tipped:
    """The backend; some of its gradients are a little off.

    Args:
        times: So many of those that count.
    """

    def __init__(self, times: int) -> None:
        self.times = times
        self.counts = False
        self._own = backends.current()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def gradients(self, model: Any, batch: Any, split: Split | None) -> tuple[Any, list[Any]]:
        loss, found = self._own.gradients(model, batch, split)
        if (split is not None or self.counts) and self.times:
            self.times -= 1
            found = [None if one is None else 1.012 * np.asarray(one) for one in found]
        return loss, found


def model() -> Any:
    built = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    built.compile("sgd", "mse")
    keras_seam.symbolic_build(built, BATCH)
    return built


def test_one_batch_on_which_parts_differ_a_little_is_followed_by_another() -> None:
    found = micro_batch.separability(model(), BATCH, Tipped(1))
    assert found.split is not None
    assert found.difference < 1e-4


def test_a_little_on_every_batch_is_a_difference() -> None:
    backend = Tipped(ALWAYS)
    found = micro_batch.separability(model(), BATCH, backend)
    assert found.split is None
    assert "differ by 1.2%" in found.reason
    assert backend.times == ALWAYS - micro_batch.DRAWS


@pytest.mark.parametrize(("times", "agrees"), [(1, True), (ALWAYS, False)])
def test_so_is_a_plan_that_is_proved(times: int, agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Tipped(times)

    @contextlib.contextmanager
    def pulled(*_: Any) -> Iterator[None]:
        backend.counts = True
        yield
        backend.counts = False

    monkeypatch.setattr(verification, "pulled", pulled)
    found = verification.verified(model(), BATCH, Levers(own_pages=True), None, backend=backend)
    assert found.agrees is agrees


def test_other_draws_are_of_the_same_samples() -> None:
    x, y, _ = micro_batch.told_apart((np.arange(5), np.arange(5), None), 2)
    assert sorted(x) == list(range(5))
    np.testing.assert_array_equal(x, y)
