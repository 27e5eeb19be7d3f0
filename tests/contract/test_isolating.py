"""``fit(isolate=True)``: trained in a worker process, as if it had been trained here; a killed worker costs no work."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.errors import WorkerError

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = X[:, :1] ** 2
RUN: dict[str, Any] = {"batch_size": 12, "epochs": 2, "verbose": 0, "shuffle": False}


def model() -> Any:
    glorot = keras.initializers.GlorotUniform
    layers = [keras.layers.Dense(units, kernel_initializer=glorot(units)) for units in (4, 1)]
    built = keras.Sequential([keras.Input((4,)), *layers])
    built.compile("adam", "mse")
    return built


class KillsOnce(keras.callbacks.Callback):
    """Kills the process that it runs in, once."""

    def __init__(self, flag: str, home: int) -> None:
        super().__init__()
        self.flag, self.home = flag, home

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert os.getpid() != self.home
        if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == 5 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Raises(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise ZeroDivisionError("of the user's own")


def test_a_killed_worker_goes_on_and_the_model_is_as_after_model_fit(tmp_path: Path) -> None:
    plain, ours = model(), model()
    expected = plain.fit(X, Y, **RUN)
    callback = KillsOnce(str(tmp_path / "killed"), os.getpid())
    actual = memfit.fit(ours, X, Y, **RUN, isolate=True, callbacks=[callback])
    assert (tmp_path / "killed").exists()
    for one, other in zip(plain.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(plain.optimizer.variables, ours.optimizer.variables, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (one, other)), atol=1e-6)
    assert actual.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-5)
    assert actual.memfit.plan.batch_size == 12


def test_what_fails_in_the_worker_fails_here(tmp_path: Path) -> None:
    ours = model()
    before = ours.get_weights()
    with pytest.raises(ZeroDivisionError, match="of the user's own"):
        memfit.fit(ours, X, Y, **RUN, isolate=True, callbacks=[Raises()])
    for one, other in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(WorkerError, match="`x` cannot be sent to a worker process"):
        memfit.fit(model(), ((X[:12], Y[:12]) for _ in range(4)), epochs=1, verbose=0, isolate=True)
