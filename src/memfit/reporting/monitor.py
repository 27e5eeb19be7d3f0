"""``memfit.MemoryMonitor``: a Keras callback that keeps a timeline of memory; with or without the rest of memfit."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from memfit import backends, budgeting, units
from memfit.errors import ArgumentError
from memfit.guarding.watch import Watcher
from memfit.records import Event, Reading
from memfit.reporting.log import Log
from memfit.reporting.recorder import Recorder
from memfit.reporting.tensorboard import Scalars
from memfit.timeline import TIMELINE_FORMAT, Timeline
from memfit.writing import written

_SCALAR_SECONDS = 1.0
_SUFFIXES = (".csv", ".json")
_OF_THIS_PROCESS = frozenset({"_recorder", "_log", "_watcher", "_own", "_host", "_past", "_model"})


class Places(keras.callbacks.Callback):
    """Tells a recorder where training is."""

    async_safe = True
    """It sets two numbers; nothing waits for it."""

    def __init__(self, recorder: Recorder | None) -> None:
        super().__init__()
        self._recorder = recorder
        self._fits = False

    def _at(self, phase: str, batch: int | None = None) -> None:
        if self._recorder is not None:
            self._recorder.phase, self._recorder.batch = phase, batch

    def on_train_begin(self, logs: Any = None) -> None:
        self._fits = True
        self._at("start")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._recorder is not None:
            self._recorder.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._at("train", batch)

    def on_test_begin(self, logs: Any = None) -> None:
        self._at("validation" if self._fits else "evaluate")

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._at("validation" if self._fits else "evaluate", batch)

    def on_test_end(self, logs: Any = None) -> None:
        self._at("between")

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._at("predict", batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._at("between")

    def on_train_end(self, logs: Any = None) -> None:
        self._fits = False


class MemoryMonitor(Places):
    """Keeps what is held while a model trains, evaluates or predicts: host and device, by batch, epoch and phase.

    Inside ``memfit.fit`` it also has the run's events; elsewhere it works by itself. With ``isolate=True`` it watches the
    worker, the last one where some were killed, and is filled here when that has ended, however it ended. What it costs is
    measured and is ``timeline.cost``. The timeline is bounded: the longer a run, the longer the stretches whose highest
    reading is kept.

    Args:
        path: Where the timeline is written when training ends: a file that ends in ".json" (for ``memfit report``) or
            ".csv"; None writes nothing.
        tensorboard: A folder for TensorBoard's scalars, in GiB by batch; None writes none.
        interval: Seconds between two samples.

    Raises:
        ArgumentError: The path or the interval cannot work.
        MemfitError: TensorBoard is not installed, or its folder cannot be used.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> monitor = memfit.MemoryMonitor()
        >>> history = model.fit(np.ones((64, 4)), np.ones((64, 1)), verbose=0, callbacks=[monitor])
        >>> monitor.peak.host_bytes > 2**20
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        tensorboard: str | os.PathLike[str] | None = None,
        interval: float = 0.05,
    ) -> None:
        super().__init__(None)
        self._path = None if path is None else _checked(path)
        if not isinstance(interval, (int, float)) or not 0.001 <= interval <= 3600:
            raise ArgumentError(f"`interval` must be from 0.001 to 3600 seconds. Received: interval={interval!r}.")
        self._interval = interval
        self._scalars = None if tensorboard is None else Scalars(tensorboard)
        self._next_scalar = 0.0
        self._num_batches = 0
        self._forget()

    def _forget(self) -> None:
        self._own = contextlib.ExitStack()
        self._recorder: Recorder | None = None
        self._log: Log | None = None
        self._watcher: Watcher | None = None
        self._host: Recorder | None = None
        self._past: tuple[Timeline, tuple[Event, ...]] = (Timeline(), ())

    def __getstate__(self) -> dict[str, Any]:
        """As it was made: what it has recorded stays in the process."""
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._model = None
        self._forget()

    @property
    def timeline(self) -> Timeline:
        """What was recorded so far."""
        return self._past[0] if self._recorder is None else self._recorder.timeline()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, in order of time."""
        return self._past[1] if self._log is None else self._log.events

    @property
    def peak(self) -> Reading:
        """The highest sample so far, host and device each at its own highest moment."""
        samples = self.timeline.samples
        host = max((sample.host_bytes for sample in samples), default=0)
        if self._watcher is not None:  # which knows those between two samples, not the first and the last one
            peak = self._watcher.peak
            return Reading(max(peak.host_bytes, host), peak.device_bytes, peak.source)
        devices = [sample.device_bytes for sample in samples if sample.device_bytes is not None]
        return Reading(host, max(devices, default=None), "samples of the timeline")

    def to_csv(self) -> str:
        """The timeline, a line a sample."""
        return self.timeline.to_csv()

    def to_json(self) -> str:
        """The timeline and the events: what ``memfit report`` reads."""
        events = [vars(event) for event in self.events]
        return json.dumps({"format": TIMELINE_FORMAT, "events": events, "timeline": self.timeline.as_fields()})

    def on_train_begin(self, logs: Any = None) -> None:
        self._begin()
        super().on_train_begin(logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_begin(batch, logs)
        self._num_batches += 1
        if self._scalars is not None and time.monotonic() >= self._next_scalar:
            self._next_scalar = time.monotonic() + _SCALAR_SECONDS
            self._write_scalars()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._write_scalars()

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        self._end()

    def on_test_begin(self, logs: Any = None) -> None:
        if not self._fits:
            self._begin()
        super().on_test_begin(logs)

    def on_test_end(self, logs: Any = None) -> None:
        super().on_test_end(logs)
        if not self._fits:
            self._end()

    def on_predict_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_predict_end(self, logs: Any = None) -> None:
        self._end()

    @contextlib.contextmanager
    def hosted(self, recorder: Recorder, log: Log) -> Iterator[None]:
        """Inside, a run that records by itself is what this monitor shows: one thread samples, not two."""
        self._own.close()
        self._recorder, self._log, self._watcher, self._host = recorder, log, None, recorder
        try:
            yield
        finally:
            self._host = None

    def take_over(self, document: str | None, before: Sequence[Event]) -> None:
        """From here on it shows what a monitor in another process has recorded.

        Args:
            document: What ``to_json`` gave there; None where that process could not tell any more.
            before: What happened before it began.
        """
        self._own.close()
        self._forget()
        fields = None if document is None else json.loads(document)
        timeline = Timeline() if fields is None else Timeline.from_fields(fields["timeline"])
        events = [] if fields is None else [Event(**event) for event in fields["events"]]
        self._past = timeline, (*before, *events)

    def write(self) -> None:
        """Writes the timeline to the path that was given, where one was."""
        if self._path is not None:
            written(self._path, self.to_csv() if self._path.suffix == ".csv" else self.to_json())

    def _begin(self) -> None:
        if self._host is not None:
            return
        self._own.close()  # of a run that ended by an error, of which Keras tells nobody
        backend, self._log = backends.current(), Log()
        budget, log = budgeting.budget(backend=backend), self._log
        self._recorder = Recorder(backend, budget=budget, tell=log.add, clock=lambda: log.seconds)
        self._watcher = self._own.enter_context(Watcher(backend, interval=self._interval, notify=self._recorder.add))
        self._recorder.add(self._watcher.held(), sampling=False)

    def _end(self) -> None:
        if self._watcher is not None and self._recorder is not None:
            self._recorder.add(self._watcher.held(), sampling=False)
        self._own.close()
        self._write_scalars()
        self.write()

    def _write_scalars(self) -> None:
        last = None if self._recorder is None else self._recorder.last()
        if self._scalars is None or last is None:
            return
        named = {
            "host": last.host_bytes,
            "children": last.children_bytes,
            "control_group": last.group_bytes,
            "device": last.device_bytes,
            "host_peak": self.peak.host_bytes,
        }
        known = {f"memory_gib/{name}": value / units.GIB for name, value in named.items() if value is not None}
        self._scalars.add(known, self._num_batches)


@contextlib.contextmanager
def joined(arguments: dict[str, Any], recorder: Recorder, log: Log) -> Iterator[None]:
    """Inside, monitors among the callbacks of ``fit`` show what the run itself records."""
    with contextlib.ExitStack() as stack:
        for one in among(arguments):
            stack.enter_context(one.hosted(recorder, log))
        yield


def among(arguments: dict[str, Any]) -> list[MemoryMonitor]:
    """The monitors among the callbacks of ``fit``."""
    callbacks = arguments.get("callbacks")
    found = callbacks.callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks
    return [one for one in (keras.tree.flatten(found) if found else []) if isinstance(one, MemoryMonitor)]


def _checked(path: str | os.PathLike[str]) -> Path:
    found = Path(path)
    if found.suffix not in _SUFFIXES or not found.parent.is_dir():
        raise ArgumentError(
            f"`path` must end in .json or .csv and its folder must be there. Received: path={str(path)!r}. Pass another."
        )
    return found
