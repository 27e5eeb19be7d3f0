"""``memfit.fit(..., isolate=True)``: training in a worker process, so that what is killed is not the notebook.

The model goes to the worker in Keras' own format through a private folder, and is loaded in safe mode; classes, callbacks and
other arguments go through a pipe; large arrays are mapped from the folder. Weights, optimizer, history and report come back
as the last snapshot of the run. A worker that is killed is started again with a smaller plan (``guarding/restarts.py``).
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np

from memfit import budgeting
from memfit.backends import keras_order, keras_saving, keras_seam, random_state
from memfit.backends.protocol import Backend
from memfit.budgeting.usage import Gauge
from memfit.errors import WorkerError
from memfit.guarding import keeping, restarts, run_state, session, snapshot
from memfit.probing.output import feed
from memfit.probing.trial import environment
from memfit.records import Event
from memfit.reporting import monitor
from memfit.reporting.console import handed_on, say

INTERRUPTED = "interrupted.npz"
MODEL = "model.keras"
TIMELINE = "timeline.json"

_MAPPED = 16 * 2**20
"""Arrays from this size on are mapped from the folder instead of being sent."""

_DATA = ("x", "y", "sample_weight", "validation_data")
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0
_MAX_RESTARTS = 20


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Stands for an array in a file of the private folder."""

    path: str


def fit(
    model: Any, arguments: dict[str, Any], options: dict[str, Any], backend: Backend, look: keras_order.Look | None
) -> Any:
    """Trains in a worker; afterwards the model is as if it had been trained here.

    Args:
        model: Compiled and built.
        arguments: Of ``model.fit``, by name.
        options: Of ``memfit.fit`` beside them.
        backend: The current backend.
        look: The batch that ``fit`` is to draw before its first epoch.

    Returns:
        The History.

    Raises:
        WorkerError: The model or an argument cannot be sent, or the worker ended without a result.
        KeyboardInterrupt: The training was interrupted; the model is as it was then.
    """
    with tempfile.TemporaryDirectory(prefix="memfit-worker-") as name:
        folder = Path(name)
        job = _shipped(model, arguments, {"options": options, "look": look}, folder)
        worker = _Worker(folder, job, {**environment(backend), **handed_on()})
        quiet = arguments.get("verbose") == 0
        restarted: list[Event] = []

        def tell(sentence: str) -> None:
            say(sentence, quiet=quiet)
            restarted.append(Event(0.0, "retry", sentence.removeprefix("memfit: ")))

        ending = restarts.until_it_ends(folder, worker.run_once, _MAX_RESTARTS, tell)
        recorded = folder / TIMELINE
        for one in monitor.among(arguments):
            one.take_over(recorded.read_text(encoding="utf-8") if recorded.exists() else None, restarted)
        if worker.interrupted:
            _take_back(model, folder / INTERRUPTED)
            raise KeyboardInterrupt
        if worker.error is not None:
            raise worker.error
        call = folder / "call-000"
        history = keeping.completed(model, arguments, keeping.Keeping(call)) if ending.code == 0 else None
        if history is None:
            raise WorkerError(
                f"The worker process ended without a result. Received: exit code {ending.code}. "
                "The model is as it was before the call. What the worker printed says why."
            )
        report = session.report(call)
        if report is not None and restarted:
            report = dataclasses.replace(report, events=(*restarted, *report.events))
            for one in monitor.among(arguments):  # the worker knew of none
                one.write()
        history.memfit = report
        return history


def _shipped(model: Any, arguments: dict[str, Any], call: dict[str, Any], folder: Path) -> bytes:
    import cloudpickle

    try:
        with keras_saving.no_imports():
            model.save(folder / MODEL)
    except Exception as error:
        raise WorkerError(f"The model cannot be sent to a worker process: {error} Leave `isolate` out.") from error
    sent = dict(arguments)
    for name in _DATA:
        sent[name] = _mapped(sent.get(name), folder)
    job: dict[str, Any] = {
        "classes": keras_seam.own_objects(model),
        "random": random_state.captured(),
        **call,
    }
    for name, value in {**job, **sent}.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            raise WorkerError(
                f"`{name}` cannot be sent to a worker process: {error}. Received: a {type(value).__name__}. "
                "Pass data as arrays or as a PyDataset and callbacks that can be pickled, or leave `isolate` out."
            ) from error
    return cloudpickle.dumps({**job, "arguments": sent})


def _mapped(structure: Any, folder: Path) -> Any:
    def leaf(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.nbytes < _MAPPED or value.dtype.kind == "O":
            return value
        path = folder / f"array-{len(list(folder.glob('array-*')))}.npy"
        np.save(path, value, allow_pickle=False)
        return Mapped(str(path))

    return structure if structure is None else keras.tree.map_structure(leaf, structure)


def _take_back(model: Any, path: Path) -> None:
    """The state of an interrupted run, where the worker could still write it."""
    if not path.exists():
        return
    found = snapshot.read(path)
    run_state.check_specs(model, found.specs)
    run_state.assign(model, found.variables)
    random_state.restore(found.random["now"])


class _Worker:
    """Starts a worker process again and again, each to its end.

    Attributes:
        interrupted: Whether the user has stopped it.
        error: What ``fit`` raised in it.
    """

    def __init__(self, folder: Path, job: bytes, env: dict[str, str]) -> None:
        self._folder = folder
        self._job = job
        self._env = env
        self.interrupted = False
        self.error: BaseException | None = None

    def run_once(self) -> restarts.Ending:
        before, room, peak = restarts.kills(), budgeting.budget().host_bytes, 0
        with self._started() as (process, outcome), Gauge(process.pid) as gauge:
            while process.poll() is None:
                try:
                    peak = max(peak, gauge.read())
                    process.wait(_LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                except KeyboardInterrupt:
                    self._interrupt(process)
        if outcome:
            self.error = pickle.loads(b"".join(outcome))  # from a pipe that the worker alone can write
        return restarts.Ending(process.returncode, peak, room, before, restarts.kills())

    def _interrupt(self, process: subprocess.Popen[bytes]) -> None:
        self.interrupted = True
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_PATIENCE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()

    @contextmanager
    def _started(self) -> Iterator[tuple[subprocess.Popen[bytes], list[bytes]]]:
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "memfit.isolated_worker", str(self._folder), str(os.getpid()), str(writing)],
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        outcome: list[bytes] = []
        threads = [
            threading.Thread(target=_copy, args=(process.stdout, sys.stdout), daemon=True),
            threading.Thread(target=_copy, args=(process.stderr, sys.stderr), daemon=True),
            threading.Thread(target=_collect, args=(reading, outcome), daemon=True),
            threading.Thread(target=feed, args=(process.stdin, self._job), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield process, outcome
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for thread in threads:
                thread.join(_PATIENCE_SECONDS)


def _copy(source: IO[bytes] | None, target: Any) -> None:
    """What the worker prints, as it comes, so that a progress bar moves; a notebook's stream is no file."""
    assert source is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with source:
        while data := os.read(source.fileno(), 65536):
            target.write(decoder.decode(data))
            target.flush()


def _collect(reading: int, outcome: list[bytes]) -> None:
    with open(reading, "rb") as file:
        while data := file.read(65536):
            outcome.append(data)
