"""``fit(isolate=True)``: trained in a worker process, as if it had been trained here; a killed worker costs no work."""

from __future__ import annotations

import csv
import json
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
    monitor = memfit.MemoryMonitor(tmp_path / "memory.json", tensorboard=tmp_path / "board")
    table = memfit.MemoryMonitor(tmp_path / "memory.csv")
    actual = memfit.fit(ours, X, Y, **RUN, isolate=True, callbacks=[callback, monitor, table])
    assert (tmp_path / "killed").exists()
    for one, other in zip(plain.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(plain.optimizer.variables, ours.optimizer.variables, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (one, other)), atol=1e-6)
    assert actual.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-5)
    assert actual.memfit.plan.batch_size == 12
    monitors_show_the_run(monitor, table, actual.memfit, tmp_path)
    plain.fit(X, Y, **RUN, callbacks=[monitor])
    assert monitor.timeline.samples != actual.memfit.timeline.samples
    assert "retry" not in {event.kind for event in monitor.events}


def monitors_show_the_run(monitor: Any, table: Any, report: Any, folder: Path) -> None:
    """Of the worker that ended the run, and that there was one before it; here, in the files and on TensorBoard."""
    assert monitor.timeline == table.timeline == report.timeline
    assert monitor.events == table.events == report.events
    assert [event.kind for event in monitor.events].count("retry") == 1
    assert "ended by SIGKILL" in monitor.events[0].message
    assert monitor.peak.host_bytes > 64 * 2**20
    document = json.loads((folder / "memory.json").read_text())
    assert [event["message"] for event in document["events"]] == [event.message for event in report.events]
    assert len(list(csv.DictReader((folder / "memory.csv").open()))) == len(report.timeline.samples)
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = sorted((folder / "board").iterdir(), key=lambda path: path.stat().st_mtime)
    events = [event for path in files for event in loader.EventFileLoader(str(path)).Load() if event.summary.value]
    assert {value.tag for event in events for value in event.summary.value} >= {
        "memory_gib/host",
        "memory_gib/host_peak",
    }
    assert events[-1].step == 8  # batches of the run, those of the killed worker too


def test_what_fails_in_the_worker_fails_here(tmp_path: Path) -> None:
    ours = model()
    before, monitor = ours.get_weights(), memfit.MemoryMonitor()
    with pytest.raises(ZeroDivisionError, match="of the user's own"):
        memfit.fit(ours, X, Y, **RUN, isolate=True, callbacks=[Raises(), monitor])
    for one, other in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert monitor.timeline.samples  # what was held until then is what one wants to see
    assert "plan" in {event.kind for event in monitor.events}


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(WorkerError, match="`x` cannot be sent to a worker process"):
        memfit.fit(model(), ((X[:12], Y[:12]) for _ in range(4)), epochs=1, verbose=0, isolate=True)
