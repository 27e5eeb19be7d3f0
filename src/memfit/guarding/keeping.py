"""A run that is kept: snapshots on the way, at a bounded cost, and a start from the last one at the very batch.

Keras' own loop goes on as ever. ``Keeper`` stands where ``fit`` has its list of callbacks and passes every event on; in a
run that goes on from a snapshot the batches that were done are drawn and thrown away, without a step and without events,
so that the order, the numbers of the batches and the schedules are those of a run that nothing has interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_data, keras_seam, random_state
from memfit.backends.protocol import Backend
from memfit.errors import ArgumentError
from memfit.guarding import ending, kept_call, run_state
from memfit.guarding.pace import Pace
from memfit.guarding.snapshot import Position, Snapshot, Store


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Where snapshots go, and how often.

    Attributes:
        folder: For the snapshots of one run.
        share: Of the time, what they may take.
        least_seconds: Between two of them.
        completes: Whether a run that has ended well leaves a last snapshot, for a process that comes to the call again.
    """

    folder: Path
    share: float = 0.01
    least_seconds: float = 0.5
    completes: bool = False


def checked(snapshots: Any) -> Keeping | None:
    """``snapshots`` as it was passed to ``memfit.fit``.

    Raises:
        ArgumentError: It is no folder.
    """
    if snapshots is None or isinstance(snapshots, Keeping):
        return snapshots
    if isinstance(snapshots, (str, os.PathLike)) and str(snapshots):
        folder = Path(snapshots)
        if not folder.exists() or folder.is_dir():
            return Keeping(folder)
    raise ArgumentError(
        f"`snapshots` must be a folder for the snapshots of this run. Received: snapshots={snapshots!r}. "
        "Pass the path of a folder; it is made where it is missing."
    )


@contextlib.contextmanager
def kept(
    model: Any,
    arguments: dict[str, Any],
    keeping: Keeping | None,
    *,
    backend: Backend,
    tell: Callable[[str], None],
    looks: bool = False,
) -> Iterator[dict[str, Any]]:
    """Gives the arguments for ``fit`` with which the run is kept; its snapshots are removed when it has ended well.

    SIGTERM, as a scheduler sends it, makes a last snapshot after the batch that is under way, and ends the process then.

    Args:
        model: The compiled model.
        arguments: Of ``fit``, by name.
        keeping: Where and how often; None keeps nothing.
        backend: The current backend.
        tell: Takes what happens, in sentences for the report.
        looks: Whether ``fit`` draws a batch before its first epoch.

    Raises:
        SnapshotError: The snapshots in the folder are of another model or call, or cannot be read; or another run keeps
            its own there now.
    """
    if keeping is None:
        yield arguments
        return
    store = Store(keeping.folder)
    with store.held():
        keeper = Keeper(model, arguments, Run(store, keeping, backend, tell, looks))
        with ending.ended_gently(keeper):
            try:
                yield keeper.arguments
            finally:
                keeper.let_go()
        if keeping.completes:
            keeper.complete()
        else:
            store.clear()


def completed(model: Any, arguments: dict[str, Any], keeping: Keeping) -> Any | None:
    """The History of a run that an earlier process has ended, its state put on the model; None where there is none.

    A model that is not built yet is left to ``kept``, which comes to the same without an epoch.

    Raises:
        SnapshotError: The snapshot is of another model or call.
    """
    if not keeping.folder.exists() or not keras_seam.is_built(model):
        return None
    found = Store(keeping.folder).latest()
    if found is None or not found.position.finished:
        return None
    kept_call.check_call(kept_call.described(arguments), found.call)
    run_state.check_specs(model, found.specs)
    inner = _callback_list(model, arguments)
    run_state.assign(model, found.variables)
    run_state.restore_callbacks(inner.callbacks, found.callbacks)
    random_state.restore(found.random["now"])
    return model.history


@dataclasses.dataclass(frozen=True)
class Run:
    """What a keeper works with: where snapshots go, how often, the backend, who is told what happens, and whether ``fit``
    draws a batch before its first epoch."""

    store: Store
    keeping: Keeping
    backend: Backend
    tell: Callable[[str], None]
    looks: bool = False


class Keeper(keras.callbacks.CallbackList):
    """The list of callbacks of a run that is kept.

    Args:
        model: The compiled model.
        arguments: Of ``fit``, by name.
        run: Where snapshots go, and how often.

    Attributes:
        arguments: To call ``fit`` with.
        ending: Set to a signal, takes a snapshot after this batch and ends the process with the signal.
        between_batches: Called after each batch, when the next is not drawn yet: inside, ``keep`` may be called.

    Raises:
        SnapshotError: The last snapshot is of another call, or cannot be read.
    """

    def __init__(self, model: Any, arguments: dict[str, Any], run: Run) -> None:
        self._inner = _callback_list(model, arguments)
        self._run = run
        self._resumed = run.store.latest()
        self._call = kept_call.described(arguments)
        self._data = run_state.DataState(arguments.get("x"))
        self._pace = Pace(run.keeping.share, run.keeping.least_seconds)
        self._epoch_random: dict[str, Any] = {}
        self._epochs: list[dict[str, Any]] = []
        self._data_state: dict[str, Any] | None = None
        self._own = list(self._inner.callbacks)  # others that memfit adds keep no state
        self._constant = run_state.constants(self._own)
        self._real: Any = None
        self._passing: Any = None
        self._epoch = 0
        # A generator that is drawn from ahead of the steps brings the random generators to where they were by itself.
        self._draws_ahead = run.backend.draws_ahead and isinstance(arguments.get("x"), types.GeneratorType)
        self._replays = kept_call.replays(arguments, looks=run.looks)
        self._failures: set[str] = set()
        self._done: tuple[Position, Any] | None = None
        self._is_kept = False
        self.ending: int | None = None
        self.between_batches: Callable[[], None] | None = None
        if self._resumed is not None:
            kept_call.check_call(self._call, self._resumed.call)
            at = self._resumed.position
            run.tell(f"goes on from a snapshot: epoch {at.epoch + 1}, {at.step} of its batches done")
        self.arguments = {**kept_call.resumed_arguments(arguments, self._resumed, looks=run.looks), "callbacks": self}
        super().__init__([], model=None)
        keras.callbacks.Callback.set_model(self, model)
        self.callbacks, self.params = self._inner.callbacks, self._inner.params

    def let_go(self) -> None:
        """Takes off the model what was put on it."""
        if self._passing is not None and self._model.train_function is self._passing:
            self._model.train_function = self._real
        self._real = self._passing = None

    # The start.

    def on_train_begin(self, logs: Any = None) -> None:
        self._inner.on_train_begin(logs)
        self._pace.begin(run_state.variables(self._model))
        found = self._resumed
        if found is None:
            return
        run_state.check_specs(self._model, found.specs)
        if kept_call.is_over(found.position, self.arguments):
            self._go_on(found)
        elif self._replays:
            self._pass_over(found)
        elif found.position.step == 0:
            self._data.restore(found.data)
            self._go_on(found)
        else:
            self._pass_over(found)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        found, self._epoch = self._resumed, epoch
        if found is not None and epoch < found.position.epoch:
            self._epochs.append(found.random["epochs"][len(self._epochs)])
            self._restore_random(self._epochs[-1], first=len(self._epochs) == 1)
            return
        if found is not None and found.position.step == 0:  # a replay has come to its end
            self._go_on(found)
            self._model.reset_metrics()
            found = None
        self._inner.on_epoch_begin(epoch, logs)
        if found is None:
            self._epoch_random, self._data_state = random_state.captured(), self._data.captured()
        else:
            # The callbacks have set themselves up for the epoch; what that changed is put back.
            self._restore(found)
            self._epoch_random, self._data_state = found.random["epoch"], found.data
            self._restore_random(self._epoch_random, first=not self._epochs)
        if self._replays:
            self._epochs.append(self._epoch_random)
        elif found is not None:
            self._data.restore(found.data)

    def _pass_over(self, found: Snapshot) -> None:
        """From here on batches are drawn and thrown away."""
        real, num_batches = self._model.train_function, self._model.steps_per_execution

        def passing(*arguments: Any) -> Any:
            return self._run.backend.pass_over(arguments, num_batches, dict(found.logs))

        self._real, self._passing = real, passing
        self._model.train_function = passing

    def _go_on(self, found: Snapshot) -> None:
        """From here on everything counts."""
        self.let_go()
        if found.position.step == 0 or kept_call.is_over(found.position, self.arguments):
            self._restore(found)
        self._restore_random(found.random["now"])
        self._resumed = None

    def _restore_random(self, state: dict[str, Any], *, first: bool = False) -> None:
        if first or not self._draws_ahead:
            random_state.restore(state)

    def _restore(self, found: Snapshot) -> None:
        run_state.assign(self._model, found.variables)
        run_state.restore_callbacks(self._own, found.callbacks)
        self._model.stop_training = found.position.finished

    # On the way.

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._resumed is None:
            self._inner.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        found = self._resumed
        if found is not None:
            # Here and not when the next batch begins, which may have been drawn before it does.
            if self._epoch == found.position.epoch and batch + 1 >= found.position.step:
                self._go_on(found)
            return
        self._inner.on_train_batch_end(batch, logs)
        self._done, self._is_kept = (Position(self._epoch, batch + 1), logs), False
        if self.ending is not None or self._pace.is_due():
            self.keep()
        if self.between_batches is not None:
            self.between_batches()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._resumed is not None:
            return
        self._inner.on_epoch_end(epoch, logs)
        if self.ending is not None or self._pace.is_due():
            # The next epoch starts from here.
            self._epoch_random, self._data_state = random_state.captured(), self._data.captured()
            self._keep(Position(epoch + 1, 0, bool(self._model.stop_training)), None)

    def on_train_end(self, logs: Any = None) -> None:
        self._inner.on_train_end(logs)

    def complete(self) -> None:
        """Writes the snapshot of a run that has ended, over those of its way."""
        position = Position(int(self.arguments.get("epochs", 1)), 0, finished=True)
        self._run.store.add(self._snapshot(position, None))

    def keep(self) -> bool:
        """Writes a snapshot of the run after the batch that is done, where there is none yet; gives whether there is one."""
        if not self._is_kept and self._done is not None and not self._model.stop_training:
            self._is_kept = self._keep(*self._done)
        return self._is_kept

    def _keep(self, position: Position, logs: Any) -> bool:
        """Writes a snapshot; training goes on where that fails, and gives False."""
        start, is_written = time.monotonic(), False
        try:
            self._run.store.add(self._snapshot(position, logs))
        except (OSError, MemoryError) as error:
            self._pace.failed()
            reason = f"a snapshot could not be written ({error}); training goes on, the one before is kept"
            if reason not in self._failures:
                self._failures.add(reason)
                self._run.tell(reason)
        else:
            is_written = True
            self._pace.wrote(time.monotonic() - start)
        if self.ending is not None:
            ending.end_with(self.ending)
        return is_written

    def _snapshot(self, position: Position, logs: Any) -> Snapshot:
        model = self.model  # on JAX, asking for it brings the state of the epoch into the variables
        return Snapshot(
            position=position,
            call=self._call,
            variables=run_state.values(model),
            specs=run_state.specs(model),
            random={"epochs": self._epochs, "epoch": self._epoch_random, "now": random_state.captured()},
            callbacks=run_state.of_callbacks(self._own, self._constant),
            data=self._data_state,
            logs=_numbers(logs),
        )

    # Events that concern the user's callbacks alone.

    def set_params(self, params: dict[str, Any]) -> None:
        if params:
            self._inner.set_params(params)

    def on_test_begin(self, logs: Any = None) -> None:
        self._inner.on_test_begin(logs)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._inner.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._inner.on_test_batch_end(batch, logs)

    def on_test_end(self, logs: Any = None) -> None:
        self._inner.on_test_end(logs)


def _callback_list(model: Any, arguments: dict[str, Any]) -> Any:
    """The list of callbacks that ``fit`` would make."""
    callbacks = arguments.get("callbacks")
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    verbose = arguments.get("verbose", "auto")
    generated = isinstance(arguments.get("x"), types.GeneratorType) and not arguments.get("steps_per_epoch")
    return keras.callbacks.CallbackList(
        callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=arguments.get("epochs", 1),
        steps=None if generated else keras_data.num_batches(arguments),
        model=model,
    )


def _numbers(logs: Any) -> dict[str, float]:
    found = {name: np.asarray(keras.ops.convert_to_numpy(value)) for name, value in (logs or {}).items()}
    return {name: float(value) for name, value in found.items() if value.size == 1}
