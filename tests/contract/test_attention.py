"""Host memory that runs short during a run: release, a smaller plan between two batches, an end that says what grew."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import carrying_out
from memfit.budgeting.ceiling import Ceiling
from memfit.errors import OutOfMemoryError
from memfit.guarding import attention
from memfit.guarding.attention import Attention

MIB = 2**20
X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :2].copy()
ARGUMENTS = {"batch_size": 16, "epochs": 3, "verbose": 0, "shuffle": False}


class FakeWatcher:
    """What is held, and the peak since the last look."""

    def __init__(self) -> None:
        self.now = 500 * MIB
        self.peak = 600 * MIB

    def held(self) -> int:
        return self.now

    def take_window_peak(self) -> int:
        return self.peak


class Machine:
    """Room to the limit by the number of looks."""

    def __init__(self, watcher: FakeWatcher, rooms: dict[int, int]) -> None:
        self.watcher, self.rooms, self.looks, self.room = watcher, rooms, 0, 10_000 * MIB

    def __call__(self) -> Ceiling:
        self.room = self.rooms.get(self.looks, self.room)
        self.looks += 1
        return Ceiling(self.watcher.now + self.room, "scripted")


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    return model


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives every run a watcher and a machine with so much room at each look; it looks before every batch."""

    def made(rooms: dict[int, int]) -> FakeWatcher:
        watcher = FakeWatcher()
        scripted = Machine(watcher, rooms)
        monkeypatch.setattr(attention, "INTERVAL", 0.0)
        monkeypatch.setattr(attention.stalls, "stalled_share", lambda: None)

        class OnThatMachine(Attention):
            def __init__(self, _: Any, *arguments: Any, **keywords: Any) -> None:
                super().__init__(watcher, *arguments, **keywords)  # type: ignore[arg-type]

        monkeypatch.setattr(carrying_out, "Attention", OnThatMachine)
        monkeypatch.setattr(attention, "host_ceiling", scripted)
        return watcher

    return made


def test_with_room_nothing_is_done(machine: Any) -> None:
    machine({})
    report = memfit.fit(small_model(), X, Y, **ARGUMENTS).memfit
    assert {event.kind for event in report.events} <= {"budget", "plan", "separability", "note"}


@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_at_the_hard_mark_a_smaller_plan_goes_on_from_the_next_batch(
    machine: Any, micro_batch_size: int | None
) -> None:
    machine({5: 80 * MIB, 6: 10_000 * MIB})
    ours, plain = small_model(), small_model()
    history = memfit.fit(ours, X, Y, **ARGUMENTS, micro_batch_size=micro_batch_size)
    expected = plain.fit(X, Y, **ARGUMENTS)
    assert [event.kind for event in history.memfit.events].count("retry") == 1
    assert history.memfit.plan.micro_batch_size in ((4,) if micro_batch_size else (4, 6, 8))
    for name, values in expected.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-4)
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_where_no_smaller_plan_is_left_training_ends_whole_and_says_what_grew(machine: Any) -> None:
    watcher = machine({4: 5 * MIB})

    class Leaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            watcher.now += 100 * MIB
            watcher.peak += 100 * MIB

    model = small_model()
    with pytest.raises(OutOfMemoryError, match=r"before the kernel would kill .* 400 MiB more since training began"):
        memfit.fit(model, X, Y, **ARGUMENTS, micro_batch_size=1, callbacks=[Leaks()])
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 4
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    model.fit(X, Y, verbose=0)


def test_before_the_end_there_is_a_moment_to_save() -> None:
    watcher, saved = FakeWatcher(), []
    backend = type("Backend", (), {"release": lambda self: None})()
    callback = Attention(
        watcher,  # type: ignore[arg-type]
        backend,
        smaller=lambda reason: False,
        log=lambda *event: None,
        before_stop=saved.append,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "INTERVAL", 0.0)
        patch.setattr(attention, "host_ceiling", Machine(watcher, {2: 0}))
        callback.on_train_batch_begin(0)
        callback.on_train_batch_begin(1)
        with pytest.raises(OutOfMemoryError):
            callback.on_train_batch_begin(2)
    assert "0 B of host memory are left" in saved[0]


def test_a_leak_is_reported_with_its_slope(machine: Any) -> None:
    watcher = machine({})

    class Leaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            watcher.now += MIB

    report = memfit.fit(small_model(), X, Y, batch_size=16, epochs=5, verbose=0, callbacks=[Leaks()]).memfit
    (leak,) = [event for event in report.events if event.kind == "leak"]
    assert "grows by 4.2 MB an epoch" in leak.message


def test_a_list_of_callbacks_of_the_callers_is_as_it_was() -> None:
    model = small_model()
    callbacks = keras.callbacks.CallbackList([], add_history=True, model=model)
    before = list(callbacks.callbacks)
    memfit.fit(model, X, Y, batch_size=16, verbose=0, callbacks=callbacks)
    assert callbacks.callbacks == before
