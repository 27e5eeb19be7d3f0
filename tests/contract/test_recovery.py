"""On an accelerator the first real step is the trial: a failure there is rolled back and tried smaller."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends
from memfit.errors import OutOfMemoryError
from memfit.records import DeviceMemory

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = X[:, :2].copy()


class NoMemoryFrom(keras.callbacks.Callback):
    """Fails like an allocator in the middle of a first step of more than so many samples: some weights are written."""

    def __init__(self, most: int, size: dict[str, int]) -> None:
        super().__init__()
        self.most = most
        self.size = size

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.size["now"] > self.most:
            self.model.trainable_variables[0].assign_add(np.ones((6, 4), "float32"))
            raise MemoryError(f"{self.size['now']} samples")


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many samples go through the step together now."""
    now = {"now": 16}
    kind = type(backends.current())
    attach = kind.attach

    def recording(self: Any, model: Any, split: Any) -> Any:
        now["now"] = 16 if split is None else split.micro_batch_size
        return attach(self, model, split)

    monkeypatch.setattr(kind, "attach", recording)
    return now


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The backend believes in an accelerator; the list counts the releases."""
    released: list[int] = []
    kind = type(backends.current())
    monkeypatch.setattr(kind, "device_memory", lambda self: DeviceMemory("gpu", 2**34, 2**20, 2**20))
    monkeypatch.setattr(kind, "release", lambda self: released.append(1))
    return released


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("micro_batch_size", [None, 12])
def test_a_first_step_without_memory_is_tried_smaller_from_the_same_weights(
    on_a_device: list[int], size: dict[str, int], micro_batch_size: int | None
) -> None:
    plain, ours = small_model(), small_model()
    arguments = {"batch_size": 16, "epochs": 2, "verbose": 0, "shuffle": False}
    plain.fit(X, Y, **arguments)
    callbacks = [NoMemoryFrom(6, size)]
    report = memfit.fit(ours, X, Y, **arguments, callbacks=callbacks, micro_batch_size=micro_batch_size).memfit
    assert report.plan.micro_batch_size in (4, 6)
    assert [event.kind for event in report.events].count("retry") == len(on_a_device) >= 1
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_where_nothing_smaller_is_left_the_error_says_so_and_the_weights_are_back(
    on_a_device: list[int], size: dict[str, int]
) -> None:
    model = small_model()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(OutOfMemoryError, match="smaller `budget`"):
        memfit.fit(model, X, Y, batch_size=16, verbose=0, callbacks=[NoMemoryFrom(0, size)])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert vars(model).get("train_step") is None


def test_on_a_cpu_nothing_is_tried_again(size: dict[str, int]) -> None:
    with pytest.raises(OutOfMemoryError, match="16 samples"):
        memfit.fit(small_model(), X, Y, batch_size=16, verbose=0, callbacks=[NoMemoryFrom(6, size)])
