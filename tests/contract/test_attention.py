"""Host memory that runs short during a run: release, a smaller plan between two batches, an end that says what grew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import carrying_out
from memfit.budgeting.ceiling import Ceiling
from memfit.data.synthetic_images import write_image_folder
from memfit.errors import OutOfMemoryError
from memfit.guarding import attention, snapshot
from memfit.guarding.attention import Attention
from memfit.guarding.keeping import Keeping

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


@pytest.mark.parametrize(("room", "stalled"), [(180 * MIB, None), (10_000 * MIB, 0.5), (80 * MIB, None)])
def test_at_the_soft_mark_a_cache_in_memory_is_given_back_and_the_result_stays(
    machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int, stalled: float | None
) -> None:
    write_image_folder(tmp_path / "photos", num_images=24, num_classes=2, image_size=(16, 16))

    def images() -> Any:
        return memfit.data.image_folder(tmp_path / "photos", image_size=(16, 16), batch_size=4, seed=1, cache="memory")

    def model() -> Any:
        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
        made.add(keras.layers.Dense(2))
        made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return made

    ours, plain = model(), model()
    plain.fit(images(), epochs=3, verbose=0, shuffle=False)
    machine({9: room, 10: 10_000 * MIB})
    monkeypatch.setattr(attention.stalls, "stalled_share", lambda: stalled)
    training = images()
    history = memfit.fit(ours, training, epochs=3, verbose=0, shuffle=False)
    said = [event.message for event in history.memfit.events if event.kind == "pressure"]
    assert sum("of a cache in memory were given back" in sentence for sentence in said) == 1, said
    assert sum("one batch is made ahead" in sentence for sentence in said) == 1, said
    whole = 24 * 16 * 16 * 3
    assert training.source.growing_bytes + training.source.held_bytes >= whole  # and may be filled again
    assert training.source.growing_bytes > 0
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def drawn() -> Iterator[Any]:
    """Batches by chance: a run that goes on has to know what was drawn before its snapshot, and what was not."""
    while True:
        rows = np.random.randint(0, len(X), 16)
        yield X[rows], Y[rows]


def kept_run(folder: Path | None) -> tuple[Any, Any]:
    np.random.seed(0)
    model = small_model()
    data = {"x": drawn(), "steps_per_epoch": 4, "epochs": 3, "verbose": 0, "micro_batch_size": 2}
    # Snapshots are due after an hour: one that is there was asked for.
    keeping = None if folder is None else Keeping(folder, least_seconds=3600.0)
    return model, memfit.fit(model, **data, snapshots=keeping)


def test_at_the_hard_mark_a_run_that_is_kept_takes_a_snapshot_and_ends_whole(machine: Any, tmp_path: Path) -> None:
    undisturbed, expected = kept_run(None)
    machine({5: 80 * MIB, 6: 10_000 * MIB, 8: 0})
    with pytest.raises(OutOfMemoryError, match=r"0 B of host memory are left.* goes on from its snapshot"):
        kept_run(tmp_path)
    positions = [snapshot.read(path).position for path in sorted(tmp_path.glob("*.npz"))]
    assert [(at.epoch, at.step) for at in positions] == [(1, 2), (2, 1)], "before a smaller plan, and before the end"
    machine({})
    finished, history = kept_run(tmp_path)
    assert "goes on from a snapshot: epoch 3, 1 of its batches done" in str(history.memfit)
    for a, b in zip(finished.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-4)


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
