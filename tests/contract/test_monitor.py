"""``MemoryMonitor``: by itself in Keras' own loops, inside ``memfit.fit``, its files, and what it costs."""

from __future__ import annotations

import csv
import json
import sys
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.errors import ArgumentError, MemfitError
from memfit.records import Budget, RunReport
from memfit.reporting.recorder import Recorder

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :2].copy()


class Slow(keras.callbacks.Callback):
    """Gives the sampling thread time to see each place."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        threading.Event().wait(0.02)

    on_test_batch_begin = on_predict_batch_begin = on_train_batch_begin


class VerySlow(Slow):
    """The same at the interval of a run's own watcher."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        threading.Event().wait(0.12)

    on_test_batch_begin = on_train_batch_begin


def small_model() -> Any:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model


def test_by_itself_it_knows_phase_epoch_and_batch(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    monitor = memfit.MemoryMonitor(path, interval=0.002)
    small_model().fit(
        X, Y, batch_size=16, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[monitor, Slow()], shuffle=False
    )
    rows = list(csv.DictReader(path.open()))
    assert {row["phase"] for row in rows} >= {"train", "validation"}
    assert {(row["epoch"], row["batch"]) for row in rows if row["phase"] == "train"} >= {("0", "2"), ("1", "3")}
    assert all(int(row["host_bytes"]) > 2**20 for row in rows)
    assert monitor.peak.host_bytes >= max(sample.host_bytes for sample in monitor.timeline.samples)
    assert not [thread for thread in threading.enumerate() if thread.name == "memfit-watcher"]


def test_evaluate_and_predict_have_their_phases() -> None:
    model, monitor = small_model(), memfit.MemoryMonitor(interval=0.002)
    model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[monitor, Slow()])
    assert {sample.phase for sample in monitor.timeline.samples} >= {"evaluate"}
    model.predict(X, batch_size=16, verbose=0, callbacks=[monitor, Slow()])
    assert {sample.phase for sample in monitor.timeline.samples} >= {"predict"}


def test_inside_memfit_it_has_the_runs_events_and_one_thread_samples() -> None:
    seen = []
    counting = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            sum(thread.name == "memfit-watcher" for thread in threading.enumerate())
        )
    )
    monitor = memfit.MemoryMonitor()
    history = memfit.fit(small_model(), X, Y, batch_size=16, verbose=0, callbacks=[monitor, counting])
    assert set(seen) == {1}
    assert [event.kind for event in monitor.events] == [event.kind for event in history.memfit.events]
    assert "plan" in {event.kind for event in monitor.events}


def test_the_report_of_a_run_has_its_timeline_and_survives_json() -> None:
    more = {"epochs": 2, "validation_split": 0.5, "callbacks": [VerySlow()], "micro_batch_size": 4}
    report = memfit.fit(small_model(), X, Y, batch_size=16, verbose=0, **more).memfit
    assert {sample.phase for sample in report.timeline.samples} >= {"train", "validation"}
    assert {sample.epoch for sample in report.timeline.samples} >= {0, 1}
    assert RunReport.from_json(report.to_json()) == report


def test_reaching_a_mark_of_the_budget_is_an_event() -> None:
    told: list[str] = []
    recorder = Recorder(budget=Budget(100, "scripted"), tell=lambda kind, message: told.append(f"{kind}: {message}"))
    recorder.phase, recorder.epoch, recorder.batch = "train", 0, 6
    for held in (79, 85, 84, 101):
        recorder.add(held)
    assert told == [
        "mark: host memory reached 80% of the budget: 85 B, epoch 1, batch 7",
        "mark: host memory reached 90% of the budget: 101 B, epoch 1, batch 7",
        "mark: host memory reached 100% of the budget: 101 B, epoch 1, batch 7",
    ]


def test_json_and_tensorboard(tmp_path: Path) -> None:
    monitor = memfit.MemoryMonitor(tmp_path / "memory.json", tensorboard=tmp_path / "board")
    small_model().fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[monitor])
    document = json.loads((tmp_path / "memory.json").read_text())
    assert document["format"] == "memfit timeline 1"
    assert len(document["timeline"]["samples"]["host_bytes"]) == len(monitor.timeline.samples)
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (tmp_path / "board").iterdir()
    found = {value.tag for event in EventFileLoader(str(path)).Load() for value in event.summary.value}
    assert {"memory_gib/host", "memory_gib/host_peak"} <= found


def test_a_run_that_fails_leaves_no_thread_to_the_next() -> None:
    def fails(batch: int, logs: Any) -> None:
        raise RuntimeError("the user's")

    monitor = memfit.MemoryMonitor()
    failing = keras.callbacks.LambdaCallback(on_train_batch_end=fails)
    with pytest.raises(RuntimeError, match="the user's"):
        small_model().fit(X, Y, verbose=0, callbacks=[monitor, failing])
    small_model().fit(X, Y, verbose=0, callbacks=[monitor])
    assert not [thread for thread in threading.enumerate() if thread.name == "memfit-watcher"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"path": "memory.txt"}, "must end in .json or .csv"),
        ({"path": "/nowhere/at/all.csv"}, "its folder must be there"),
        ({"interval": 0}, "from 0.001 to 3600"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        memfit.MemoryMonitor(**arguments)


def test_without_tensorboard_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(MemfitError, match=r"pip install 'memfit\[tensorboard\]'"):
        memfit.MemoryMonitor(tensorboard=tmp_path)
