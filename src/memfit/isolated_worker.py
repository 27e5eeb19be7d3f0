"""The worker of ``memfit.fit(..., isolate=True)``: ``python -m memfit.isolated_worker FOLDER PARENT FD``, started by it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def main(folder: Path, parent: int, result: int) -> int:
    """Trains, and leaves the result in the session; what ``fit`` raises goes through the pipe ``result``.

    Returns:
        The exit code.
    """
    import cloudpickle

    from memfit.probing import entry

    entry.end_with(parent)
    entry.be_first_victim()  # a notebook may hold more than its worker
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell had it ignored
    os.set_inheritable(result, False)
    model = None
    try:
        job: dict[str, Any] = pickle.load(sys.stdin.buffer)  # a pipe from the process that started this one
        model = _model(folder, job)
        _train(model, folder, job)
    except KeyboardInterrupt:
        if model is not None:
            _keep_interrupted(model, folder)
        return 130
    except Exception as error:  # noqa: BLE001 - all of them are raised in the caller's process
        error.add_note("In the worker process:\n" + traceback.format_exc())
        try:
            document = cloudpickle.dumps(error.with_traceback(None))
            pickle.loads(document)
        except Exception:  # noqa: BLE001 - an error that cannot be sent goes as its text
            from memfit.errors import WorkerError

            document = cloudpickle.dumps(WorkerError("".join(traceback.format_exception(error))))
        os.write(result, document)
        return 1
    return 0


def _model(folder: Path, job: dict[str, Any]) -> Any:
    import keras

    from memfit.backends import keras_saving
    from memfit.errors import WorkerError
    from memfit.isolating import MODEL

    try:
        with keras_saving.no_imports():
            return keras.saving.load_model(folder / MODEL, custom_objects=job["classes"], safe_mode=True)
    except Exception as error:
        raise WorkerError(
            f"The model cannot be loaded in a worker process: {error} Leave `isolate` out, or write Lambda layers as classes."
        ) from error


def _train(model: Any, folder: Path, job: dict[str, Any]) -> None:
    import keras
    import numpy as np

    from memfit import fitting
    from memfit.backends import keras_order, random_state
    from memfit.errors import ArgumentError
    from memfit.guarding import session
    from memfit.isolating import TIMELINE, Mapped
    from memfit.reporting import monitor
    from memfit.writing import written

    def leaf(value: Any) -> Any:
        return np.load(value.path, mmap_mode="r", allow_pickle=False) if isinstance(value, Mapped) else value

    arguments = job["arguments"]
    for name in ("x", "y", "sample_weight", "validation_data"):
        if arguments.get(name) is not None:
            arguments[name] = keras.tree.map_structure(leaf, arguments[name])
    session.begin(folder)
    random_state.restore(job["random"])
    keras_order.owe_look(model, job["look"])
    try:
        fitting.fit(model, **arguments, **job["options"])
    finally:
        for one in monitor.among(arguments)[:1]:  # all of them show the same run
            with contextlib.suppress(ArgumentError):  # no room for it; the training counts
                written(folder / TIMELINE, one.to_json())


def _keep_interrupted(model: Any, folder: Path) -> None:
    from memfit.backends import random_state
    from memfit.guarding import run_state, snapshot
    from memfit.isolating import INTERRUPTED

    state = {"now": random_state.captured()}
    position = snapshot.Position(0, 0, finished=True)
    found = snapshot.Snapshot(position, {}, run_state.values(model), run_state.specs(model), state, [], None, {})
    snapshot.write(folder / INTERRUPTED, found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
