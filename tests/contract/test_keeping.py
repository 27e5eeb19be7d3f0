"""Runs that are broken off and go on from their snapshots end as runs that nothing has disturbed.

Here they are broken off by an exception at a chosen batch, with every snapshot written; ``benchmarks/kills.py`` and
``tests/e2e/test_run.py`` kill processes.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import evaluating
from memfit.errors import ArgumentError, SnapshotError
from memfit.guarding import snapshot
from memfit.guarding.keeping import Keeping

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = X[:, :1] ** 2
EPOCHS = 3


class Broken(BaseException):
    """Ends a run where it stands."""


class Breaks(keras.callbacks.Callback):
    def __init__(self, after: int | None) -> None:
        super().__init__()
        # An iterator is no plain value: a snapshot does not bring it back.
        self._left = itertools.repeat(None) if after is None else iter([None] * after)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if next(self._left, Broken) is Broken:
            raise Broken


class Shuffled(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()
        self.order = np.arange(len(X))

    def __len__(self) -> int:
        return 4

    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)

    def __getitem__(self, index: int) -> Any:
        rows = self.order[10 * index : 10 * index + 10]
        return X[rows], Y[rows]


def drawn() -> Iterator[Any]:
    while True:
        rows = np.random.randint(0, len(X), 10)
        yield X[rows], Y[rows]


DATA = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": 10},
    "parts": lambda: {"x": X, "y": Y, "batch_size": 10, "micro_batch_size": 4, "allow": {"inexact_micro_batch"}},
    "split": lambda: {"x": X, "y": Y, "batch_size": 10, "validation_split": 0.25},
    "PyDataset": lambda: {"x": Shuffled()},
    "generator": lambda: {"x": drawn(), "steps_per_epoch": 4},
}


def seed() -> None:
    """As ``keras.utils.set_random_seed``, which imports every framework."""
    random.seed(3), np.random.seed(3)
    framework: Any = sys.modules.get(keras.backend.backend())
    if keras.backend.backend() == "tensorflow":
        framework.random.set_seed(3)
    elif keras.backend.backend() == "torch":
        framework.manual_seed(3)


def model(units: int = 5) -> Any:
    seed()
    layers = [
        keras.layers.Dense(units, activation="tanh"),
        keras.layers.Dropout(0.3),
        keras.layers.BatchNormalization(),
    ]
    built = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
    built.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return built


def every_batch(folder: Path) -> Keeping:
    return Keeping(folder, share=1.0, least_seconds=0.0)


def train(data: str, folder: Path | None, after: int | None = None) -> tuple[Any, Any]:
    trained = model()
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=10.0)
    history = memfit.fit(
        trained,
        **DATA[data](),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[Breaks(after), plateau],
        snapshots=None if folder is None else every_batch(folder),
    )
    return trained, history


def everything(trained: Any) -> list[np.ndarray]:
    variables = [*trained.variables, *trained.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    for a, b in zip(everything(one[0]), everything(other[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert one[1].epoch == other[1].epoch == list(range(EPOCHS))
    assert set(one[1].history) == set(other[1].history)
    for name, values in one[1].history.items():
        np.testing.assert_allclose(values, other[1].history[name], atol=1e-6)


@pytest.mark.parametrize("data", DATA)
def test_a_run_goes_on_at_the_very_batch(data: str, tmp_path: Path) -> None:
    undisturbed = train(data, None)
    # The next batch after its last snapshot; the last of an epoch; in the last epoch.
    for after in (2, 1, 3):
        with pytest.raises(Broken):
            train(data, tmp_path / "snapshots", after)
    finished = train(data, tmp_path / "snapshots")
    assert_same(undisturbed, finished)
    assert not (tmp_path / "snapshots").exists()


def test_snapshots_of_another_model_or_call_are_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(Broken):
        train("arrays", tmp_path, 2)
    before = sorted(path.name for path in tmp_path.glob("*.npz"))
    other = model(units=6)
    weights = other.get_weights()
    with pytest.raises(SnapshotError, match="of another model or optimizer"):
        memfit.fit(other, X, Y, batch_size=10, epochs=EPOCHS, verbose=0, snapshots=tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(weights, other.get_weights(), strict=True))
    with pytest.raises(SnapshotError, match=r"other batches. Received: batch_size=20 \(there: 10\)"):
        memfit.fit(model(), X, Y, batch_size=20, epochs=EPOCHS, verbose=0, snapshots=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == before


def test_a_full_disk_costs_snapshots_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train("arrays", None)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot.os, "fsync", full)
    found = train("arrays", tmp_path / "snapshots")
    assert_same(undisturbed, found)
    (event,) = [event for event in found[1].memfit.events if event.kind == "snapshot"]
    assert "No space left on device" in event.message


def test_a_bad_folder_is_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", "", 3):
        with pytest.raises(ArgumentError, match="`snapshots` must be a folder"):
            memfit.fit(model(), X, Y, verbose=0, snapshots=wrong)


def test_protected_fit_is_memfits_and_is_put_back() -> None:
    original = keras.Model.fit
    undisturbed = model()
    memfit.fit(undisturbed, X, Y, batch_size=10, verbose=0, micro_batch_size=4, allow={"inexact_micro_batch"})
    trained = model()
    with memfit.protect(budget="1 MiB"), memfit.protect(micro_batch_size=4, allow={"inexact_micro_batch"}):
        history = trained.fit(X, Y, batch_size=10, verbose=0)
    assert history.memfit.plan.micro_batch_size == 4
    assert keras.Model.fit is original
    assert "fit" not in vars(trained)
    for a, b in zip(everything(undisturbed), everything(trained), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_protected_evaluate_and_predict_give_what_keras_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, called = model(), []
    expected = trained.evaluate(X, Y, verbose=0), trained.predict(X, verbose=0)
    for name in ("evaluate", "predict"):
        function = functools.partial(lambda name, real, *args, **kw: called.append(name) or real(*args, **kw), name)
        monkeypatch.setattr(evaluating, name, functools.partial(function, getattr(evaluating, name)))
    with memfit.protect(budget="2 GiB", probe=False):
        found = trained.evaluate(X, Y, verbose=0), trained.predict(X, verbose=0)
    assert called == ["evaluate", "predict"]
    np.testing.assert_allclose(expected[0], found[0], rtol=1e-5)
    np.testing.assert_allclose(expected[1], found[1], rtol=1e-5)


def test_a_fit_of_the_users_own_is_entered_once() -> None:
    class Own(keras.Sequential):
        entered = 0

        def fit(self, *args: Any, **kwargs: Any) -> Any:
            Own.entered += 1
            return super().fit(*args, **kwargs)

    own = Own([keras.Input((4,)), keras.layers.Dense(1)])
    own.compile("sgd", "mse")
    with memfit.protect():
        assert hasattr(own.fit(X, Y, verbose=0), "memfit")
    assert Own.entered == 1


def test_a_fit_inside_a_callback_is_keras_own() -> None:
    inner: list[Any] = []

    class Fits(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            inner.append(model().fit(X, Y, verbose=0))

    with memfit.protect():
        outer = model().fit(X, Y, verbose=0, callbacks=[Fits()])
    assert hasattr(outer, "memfit")
    assert not hasattr(inner[0], "memfit")


def test_two_fits_at_once_are_two_runs(tmp_path: Path) -> None:
    models, errors = [model(), model()], []
    expected = model()
    memfit.fit(expected, X, Y, batch_size=10, epochs=EPOCHS, shuffle=False, verbose=0)

    def run(number: int) -> None:
        try:
            keeping = every_batch(tmp_path / str(number))
            memfit.fit(models[number], X, Y, batch_size=10, epochs=EPOCHS, shuffle=False, verbose=0, snapshots=keeping)
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for trained in models:
        assert [int(trained.optimizer.iterations), trained.built] == [int(expected.optimizer.iterations), True]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_fork_after_a_kept_run_ends_by_itself(tmp_path: Path) -> None:
    train("arrays", tmp_path / "snapshots")
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
