"""A decision carried out: the plan on the model while ``model.fit`` runs, made smaller where memory runs out, and taken off."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from memfit.arranging import Decision
from memfit.backends import keras_seam
from memfit.backends.around import Around
from memfit.backends.protocol import Backend
from memfit.budgeting import device
from memfit.errors import DoesNotFitError, OutOfMemoryError
from memfit.executing.forward import ForwardStep
from memfit.guarding import recover
from memfit.guarding.attention import Attention
from memfit.guarding.keeping import Keeper
from memfit.guarding.trimming import Trimming
from memfit.guarding.watch import Watcher
from memfit.levers.arranged import Arranged
from memfit.reporting.log import Log


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a run needs: the decision, the arguments to fit with, and how to take a smaller decision after a failure."""

    decision: Decision
    arguments: dict[str, Any]
    backend: Backend
    shrink: Callable[[Decision], Decision | None]
    watching: tuple[Any, ...] = ()
    """Callbacks that memfit adds to the user's."""


def carried_out(model: Any, prepared: Prepared, watcher: Watcher, log: Log) -> tuple[Any, Decision]:
    """Runs ``model.fit`` with the plan; where the framework allows it, a step that runs out of memory is tried smaller."""
    with Arranged(model, prepared.backend) as arranged:
        run = _Run(model, prepared, arranged, log)
        try:
            keeper = _keeper(prepared.arguments)
            keep = None if keeper is None else keeper.keep
            attention = Attention(watcher, prepared.backend, smaller=run.put_half, log=log.add, keep=keep)
            callbacks = [attention]
            if prepared.backend.step_costs().own_pages is not None:  # tensors lie on the C library's heap
                callbacks.append(Trimming(watcher.held, functools.partial(run.most_held, watcher.held())))
            if keeper is not None:
                keeper.between_batches = attention.between_batches
            with run.recovering(), _also_called(prepared.arguments, [*prepared.watching, *callbacks]) as arguments:
                return model.fit(**arguments), run.decision
        except OutOfMemoryError:
            raise
        except Exception as error:
            if not prepared.backend.is_out_of_memory(error):
                raise
            failure = f"{type(error).__name__}: {str(error)[:300]}"
            raise OutOfMemoryError(_out_of_memory_text(run.decision, failure, prepared.backend)) from error


class _Run:
    """One run's decision, and what makes it smaller."""

    def __init__(self, model: Any, prepared: Prepared, arranged: Arranged, log: Log) -> None:
        self.decision = prepared.decision
        self._model = model
        self._prepared = prepared
        self._arranged = arranged
        self._log = log
        self._around: Around | None = None
        self._put(self.decision)

    @contextlib.contextmanager
    def recovering(self) -> Iterator[None]:
        """Inside, training and validation steps that run out of memory are tried again smaller, where that is possible."""
        backend = self._prepared.backend
        if not recover.survives(backend) or keras_seam.is_distributed(self._model):
            yield
            return
        recovery = recover.Recovery(backend, shrink=self._shrink, log=self._log.add)
        validation = ForwardStep(self._model, backend, most=None, collected=None)
        self._around = recovery.around = around_train = backend.around(self._model, "train", recovery)
        arounds = [around_train]
        if self._prepared.arguments.get("validation_data") is not None or self._prepared.arguments.get(
            "validation_split"
        ):
            arounds.append(backend.around(self._model, "test", validation))
        try:
            yield
        except BaseException:
            around_train.rescue()
            raise
        finally:
            self._around = None
            for around in reversed(arounds):
                around.take_off()
            for failure in validation.failures:
                self._log.add("out of memory", f"in validation, which went on in smaller parts: {failure}")

    def most_held(self, at_start: int) -> int | None:
        """Bytes that may be held before a step so that it stays within the budget; None where nothing was predicted."""
        plan = self.decision.plan
        return None if plan.peak is None else plan.budget.limiting_bytes - (plan.peak.upper - at_start)

    def _put(self, decision: Decision) -> None:
        self._arranged.put(decision.plan.levers, decision.split, analysed=decision.profile is not None)
        self.decision = decision

    def put_half(self, reason: str) -> bool:
        """As ``put_smaller``, without predictions: those take memory, just where there is little."""
        self.decision = dataclasses.replace(self.decision, halving=True)
        return self.put_smaller(reason)

    def put_smaller(self, reason: str) -> bool:
        """Puts a smaller plan on the model, between two of its steps or inside one that failed; False where there is none."""
        smaller: Decision | None = None

        def change() -> None:
            nonlocal smaller
            self._arranged.take_off()
            try:
                smaller = self._prepared.shrink(self.decision)
            except Exception as error:
                # Planning takes memory itself.
                if not isinstance(error, DoesNotFitError) and not self._prepared.backend.is_out_of_memory(error):
                    raise
            self._put(smaller or self.decision)

        if self._around is not None:
            self._around.exchange(change)
        else:
            keras_seam.sync_state(self._model)
            change()
        if smaller is None:
            return False
        self._log.add("retry", f"{self.decision.plan.summary} ({reason})")
        return True

    def _shrink(self, failure: str) -> None:
        if not self.put_smaller(failure):
            raise OutOfMemoryError(_out_of_memory_text(self.decision, failure, self._prepared.backend))


@contextlib.contextmanager
def _also_called(arguments: dict[str, Any], more: list[Any]) -> Iterator[dict[str, Any]]:
    """The arguments of ``fit`` with some callbacks more; a ``CallbackList`` of the user's is afterwards as it was."""
    callbacks = arguments.get("callbacks")
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        given = callbacks if isinstance(callbacks, (list, tuple)) else [] if callbacks is None else [callbacks]
        yield {**arguments, "callbacks": [*given, *more]}
        return
    for callback in more:
        callback.set_model(callbacks.model)
    callbacks.callbacks.extend(more)
    try:
        yield arguments
    finally:
        for callback in more:
            callbacks.callbacks.remove(callback)


def _keeper(arguments: dict[str, Any]) -> Keeper | None:
    """What keeps the run, in the place of its callbacks."""
    callbacks = arguments.get("callbacks")
    return callbacks if isinstance(callbacks, Keeper) else None


def _out_of_memory_text(decision: Decision, failure: str, backend: Backend) -> str:
    plan = decision.plan
    others = device.others_text(backend.device_memory())
    predicted = "" if plan.peak is None else f" The plan predicted a peak of {plan.peak}."
    return (
        f"Training ran out of memory with {plan.summary.removeprefix('memfit: ')} ({failure}).{predicted}"
        f"{others and ' '}{others} Pass a smaller `budget`, or a smaller `micro_batch_size` by hand, and start again from "
        "your last checkpoint."
    )
