"""A decision carried out: the plan on the model while ``model.fit`` runs, made smaller where memory runs out, and taken off."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras

from memfit.arranging import Decision
from memfit.backends import error_chain, keras_optimizer, keras_order, keras_seam
from memfit.backends.around import Around, Run, Wrapper
from memfit.backends.host_bound import HostBound
from memfit.backends.protocol import Backend
from memfit.budgeting import device
from memfit.data import given, queues
from memfit.data.queues import Queue
from memfit.errors import DoesNotFitError, OutOfMemoryError
from memfit.executing.forward import ForwardStep
from memfit.guarding import recover
from memfit.guarding.attention import Attention
from memfit.guarding.keeping import Keeper
from memfit.guarding.larger import Larger
from memfit.guarding.trimming import Trimming
from memfit.guarding.watch import Watcher
from memfit.levers.arranged import Arranged
from memfit.profiling import batches as batches_of
from memfit.profiling import layers
from memfit.reporting.log import Log

_ROOMY = 2
"""A plan that takes so many times less than there is needs no bound, which costs each step some microseconds."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a run needs: the decision, the arguments to fit with, and how to take a smaller decision after a failure."""

    decision: Decision
    arguments: dict[str, Any]
    backend: Backend
    shrink: Callable[[Decision], Decision | None]
    replan: Callable[[Any], Decision | None] | None = None
    """Takes the ``(x, y, sample_weight)`` of TensorSpec of a batch, and gives the decision for it; None where batches have one
    shape."""
    batch_bytes: int = 0
    """Of the batch that was planned for."""
    queue: Queue | None = None
    """Of the training data, where Keras fills one."""
    look: keras_order.Look | None = None
    """The batch that ``fit`` is to draw before its first epoch."""
    watching: tuple[Any, ...] = ()
    """Callbacks that memfit adds to the user's."""


def carried_out(model: Any, prepared: Prepared, watcher: Watcher, log: Log) -> tuple[Any, Decision]:
    """Runs ``model.fit`` with the plan; where the framework allows it, a step that runs out of memory is tried smaller."""
    look = prepared.look
    with (
        queues.applied(prepared.arguments, prepared.queue, looks=keras_order.draws_first(model, look)) as arguments,
        keras_order.looking_first(model, look),
        Arranged(model, prepared.backend) as arranged,
    ):
        prepared = dataclasses.replace(prepared, arguments=arguments)
        run = _Run(model, prepared, arranged, log=log, held=watcher.held)
        try:
            keeper = _keeper(prepared.arguments)
            keep = None if keeper is None else keeper.keep
            attention = Attention(
                watcher,
                prepared.backend,
                smaller=run.put_half,
                log=log.add,
                keep=keep,
                hold_less=functools.partial(given.hold_less, arguments, prepared.queue),
            )
            callbacks = [attention]
            if run.trims:
                callbacks.append(Trimming(watcher.held, run.most_held))
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
            error_chain.drop_frames(error)
            raise OutOfMemoryError(_out_of_memory_text(run.decision, failure, prepared.backend)) from error


class _Run:
    """One run's decision, and what makes it smaller."""

    def __init__(
        self, model: Any, prepared: Prepared, arranged: Arranged, *, log: Log, held: Callable[[], int]
    ) -> None:
        self.decision = prepared.decision
        self._held = held
        self._held_as_planned = held()
        self._model = model
        self._prepared = prepared
        self._arranged = arranged
        self._log = log
        self._around: Around | None = None
        self._put(self.decision)
        backend = prepared.backend
        peak = self.decision.plan.peak
        near = peak is not None and peak.upper * _ROOMY > self.decision.plan.budget.limiting_bytes
        self._bound = recover.bound_on_host(backend, model) if near else None
        self.trims = self._bound is None and backend.step_costs().own_pages is not None
        """Whether tensors lie on the C library's heap, and its gaps are not bounded."""

    @contextlib.contextmanager
    def recovering(self) -> Iterator[None]:
        """Inside, training and validation steps that run out of memory are tried again smaller, where that is possible; a
        batch that is larger than those before is planned for before its step."""
        backend, survives = self._prepared.backend, recover.survives(self._prepared.backend)
        if keras_seam.is_distributed(self._model) or not (survives or self._prepared.replan):
            yield
            return
        bound = self._bound
        recovery = recover.Recovery(backend, shrink=self._shrink, log=self._log.add, bound=bound) if survives else None
        validation = ForwardStep(self._model, backend, most=None, collected=None, bound=bound)
        self._around = around_train = backend.around(self._model, "train", self._looking(recovery or _as_it_is))
        if recovery is not None:
            recovery.around = around_train
        arounds = [around_train]
        arguments = self._prepared.arguments
        if survives and (arguments.get("validation_data") is not None or arguments.get("validation_split")):
            arounds.append(backend.around(self._model, "test", validation))
        try:
            with recover.let_go(bound), _unbounded_updates(self._model.optimizer, bound):
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

    def most_held(self, times: float = 1.0) -> int | None:
        """Bytes that may be held before a step so that it stays within the budget; None where nothing was predicted.

        Args:
            times: How many times as much the step takes as was planned.
        """
        plan = self.decision.plan
        if plan.peak is None:
            return None
        return plan.budget.limiting_bytes - int(times * max(0, plan.peak.upper - self._held_as_planned))

    def _looking(self, wrapper: Wrapper) -> Wrapper:
        """The wrapper behind a look at each batch, where one may come that is larger than was planned for."""
        if self._prepared.replan is None:
            return wrapper

        def described(batch: Any) -> tuple[Any, int] | None:
            spec = batches_of.spec_of(batch)
            return None if spec is None else (spec, layers.tensor_bytes(spec))

        def fits(times: float) -> bool:
            most = self.most_held(times)
            return most is None or self._held() <= most

        larger = Larger(self._prepared.batch_bytes, described=described, fits=fits, replan=self._replan)

        def looking(run: Run, batch: Any) -> Any:
            larger.look(batch)
            return wrapper(run, batch)

        return looking

    def _replan(self, spec: Any) -> None:
        """Plans for a batch of these shapes; where no plan is predicted to fit, it goes through in the smallest parts."""
        found: Decision | None = None
        refused = ""

        def change() -> None:
            nonlocal found, refused
            self._arranged.take_off()
            self._prepared.backend.release()
            try:
                found = self._prepared.replan(spec) if self._prepared.replan is not None else None
            except DoesNotFitError as error:
                refused = str(error)
            self._put(found or self.decision)

        assert self._around is not None
        self._around.exchange(change)
        self._held_as_planned = self._held()
        shapes = ", ".join(str(leaf.shape) for leaf in keras_seam.flatten(spec[0]))
        if found is not None:
            self._log.add("larger batch", f"a batch of {shapes}, the largest so far: {found.plan.summary}")
            return
        self._log.add("larger batch", f"a batch of {shapes}, the largest so far, is not predicted to fit: {refused}")
        while refused and self.put_half(f"a batch of {shapes} is not predicted to fit"):
            continue

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


def _unbounded_updates(optimizer: Any, bound: HostBound | None) -> AbstractContextManager[None]:
    """Inside, the bound on memory does not hold while weights are written: that cannot be undone."""
    return contextlib.nullcontext() if bound is None else keras_optimizer.applying_in(optimizer, bound.lifted)


def _as_it_is(run: Run, batch: Any) -> Any:
    return run(batch)


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
