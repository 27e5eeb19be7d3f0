"""``memfit.fit``: the stages in a row. Budget, profile, plan, execute, guard, report; nothing else composes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras

from memfit import backends, budgeting, deciding, isolating
from memfit.arranging import Decision, Request
from memfit.backends import keras_order, keras_seam, random_state
from memfit.backends.protocol import Backend
from memfit.carrying_out import Prepared, carried_out
from memfit.data import given as given_data
from memfit.data import queues
from memfit.errors import ArgumentError
from memfit.executing import arguments as fit_arguments_of
from memfit.executing import feeding, noticed
from memfit.guarding import interception, session
from memfit.guarding import keeping as keeping_of
from memfit.guarding.watch import Watcher
from memfit.planning.attempt import Attempt
from memfit.profiling import batches as batches_of
from memfit.profiling import layers
from memfit.records import Budget, Plan, Profile, RunReport
from memfit.reporting import monitor, progress
from memfit.reporting.console import say
from memfit.reporting.log import Log
from memfit.reporting.recorder import Recorder


def fit(
    model: Any,
    *args: Any,
    budget: Any = None,
    plan: Plan | None = None,
    allow: Collection[str] = (),
    micro_batch_size: int | None = None,
    probe: bool | None = None,
    snapshots: Any = None,
    isolate: bool = False,
    **fit_arguments: Any,
) -> Any:
    """Trains a compiled Keras model as ``model.fit`` does, within the memory that is there.

    Where the step of a whole batch does not fit, it goes through in micro-batches with one update, so that the effective
    batch, the callbacks, the schedules and the result stay those of ``model.fit``. Where it fits, ``model.fit`` runs as
    it is. Large arrays are fed by index in the order of ``model.fit`` instead of being copied whole.

    Args:
        model: A compiled ``keras.Model``: Sequential, Functional or subclassed.
        *args: What ``model.fit`` takes by position: ``x``, ``y``, ``batch_size``, ...
        budget: A ceiling on the memory of this process (on the device's memory where there is one): bytes, a text like
            "12 GiB", a preset like "colab-t4", or a Budget. Left out: what this machine allows now.
        plan: A plan from ``memfit.plan`` to follow instead of making one.
        allow: Levers that change the result and may be pulled: "inexact_micro_batch" splits the batch of a model whose
            layers mix samples, such as BatchNormalization; "precision" lets most layers compute in the half precision that
            the device has in hardware; "optimizer_state" keeps the moments of Adam and AdamW in 8 bits.
        micro_batch_size: Samples of a part, set by hand instead of by a plan; exact all the same.
        probe: Whether a trial in a child process confirms the plan, and corrects it; seconds to a minute. None: only where
            the analysis of the step is weak. On an accelerator the first step itself is the trial.
        snapshots: A folder. The run is kept there at a cost of 1 % of its time; the same call after a kill goes on at the
            very batch. Removed when the run has ended.
        isolate: Whether to train in a worker process: if the kernel kills it this process lives, and the training goes on
            with a smaller plan. Callbacks run in the worker; their counters and lists come back, what they open does not.
        **fit_arguments: Everything else that ``model.fit`` takes.

    Returns:
        Keras' ``History``; its attribute ``memfit`` is the ``RunReport``.

    Raises:
        ArgumentError: An argument cannot work; the model is untouched.
        BudgetError: The budget is not positive, cannot be read, or is more than the machine has.
        DoesNotFitError: No plan fits the budget; raised before any training, or under a supervisor (`memfit run`,
            ``isolate``) after one attempt of what was not ruled out. The model is as it was.
        OutOfMemoryError: Training ran out of memory and no smaller plan was left.
        SnapshotError: The snapshots in the folder are of another model, call or version, or cannot be read.
        WorkerError: With ``isolate``: the model or an argument cannot be sent, or the worker ended without a result.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.ones((64, 4), "float32"), np.ones((64, 1), "float32")
        >>> history = memfit.fit(model, x, y, batch_size=32, micro_batch_size=8, verbose=0)
        >>> history.memfit.plan.num_parts
        4
    """
    keeping = keeping_of.checked(snapshots)
    asked = _Asked(budget, plan, allow, micro_batch_size, probe)
    supervisor = session.current()
    with interception.suspended():
        if isolate:
            return _fit_isolated(model, args, fit_arguments, asked, keeping)
        if supervisor is None:
            return _fit(model, args, fit_arguments, asked, keeping)
        with supervisor.entered() as call:
            if call is None:
                return _fit(model, args, fit_arguments, asked, keeping)
            run = functools.partial(_fit_supervised, model, args, fit_arguments, asked, call)
            return session.supervised(supervisor, call, run)


def _fit_isolated(
    model: Any, args: tuple[Any, ...], given: dict[str, Any], asked: _Asked, keeping: keeping_of.Keeping | None
) -> Any:
    """In a worker, which supervises itself by the snapshots of its session."""
    if keeping is not None:
        raise ArgumentError(
            f"A worker keeps its own snapshots. Received: isolate=True and snapshots={str(keeping.folder)!r}. Leave one out."
        )
    fit_arguments_of.check_model(model)
    found, arguments = batches_of.described(fit_arguments_of.bound(model, args, given))
    look = deciding.built_with_look(model, found, arguments, isolated=True)
    options = {name: value for name, value in vars(asked).items() if name != "attempt"}
    return isolating.fit(model, arguments, options, backends.current(), look)


def _fit_supervised(
    model: Any, args: tuple[Any, ...], given: dict[str, Any], asked: _Asked, call: Path, limit: session.Limit
) -> Any:
    """One call of a script under ``memfit run``: nothing is done where an earlier process has done it."""
    keeping = keeping_of.Keeping(call, completes=True)
    fit_arguments_of.check_model(model)
    history = keeping_of.completed(model, fit_arguments_of.bound(model, args, given), keeping)
    if history is not None:
        history.memfit = session.report(call)
        return history
    if limit.budget is not None:
        allowed = budgeting.budget(asked.budget, backend=backends.current())
        asked = dataclasses.replace(asked, budget=min(limit.budget, allowed.limiting_bytes))
    if limit.micro_batch_size is not None and asked.plan is None:
        own = asked.micro_batch_size or limit.micro_batch_size
        asked = dataclasses.replace(asked, micro_batch_size=min(own, limit.micro_batch_size))
    if limit.attempt:
        asked = dataclasses.replace(asked, attempt=functools.partial(session.note_attempt, call))
    return _fit(model, args, given, asked, keeping)


def _fit(
    model: Any, args: tuple[Any, ...], given: dict[str, Any], asked: _Asked, keeping: keeping_of.Keeping | None
) -> Any:
    log = Log()
    with backends.current().bounded_device(budgeting.asked_device_bytes(asked.budget)) as bound:
        if bound is not None:
            log.add("device", bound)
        return _fitted(model, _prepared(model, args, given, asked, log), keeping, log)


def plan(
    model: Any,
    *args: Any,
    budget: Any = None,
    allow: Collection[str] = (),
    micro_batch_size: int | None = None,
    probe: bool | None = None,
    **fit_arguments: Any,
) -> Plan:
    """The plan that ``memfit.fit`` with the same arguments would follow; trains nothing.

    Args:
        model: A compiled ``keras.Model``.
        *args: What ``model.fit`` takes by position.
        budget: As for ``memfit.fit``.
        allow: As for ``memfit.fit``.
        micro_batch_size: As for ``memfit.fit``.
        probe: As for ``memfit.fit``.
        **fit_arguments: Everything else that ``model.fit`` takes.

    Raises:
        ArgumentError: An argument cannot work; the model is untouched.
        DoesNotFitError: No plan fits the budget.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> plan = memfit.plan(model, np.ones((64, 4), "float32"), np.ones((64, 1), "float32"), batch_size=32)
        >>> plan.micro_batch_size is None
        True
    """
    asked = _Asked(budget, None, allow, micro_batch_size, probe)
    return _prepared(model, args, fit_arguments, asked, Log()).decision.plan


def profile(model: Any, *args: Any, **fit_arguments: Any) -> Profile:
    """What one training step of the model costs at the real batch, by category and by layer; trains nothing.

    Args:
        model: A compiled ``keras.Model``.
        *args: What ``model.fit`` takes by position; or none, where the model knows the shapes of its inputs.
        **fit_arguments: As for ``model.fit``; ``batch_size`` alone is enough for a model with known inputs.

    Raises:
        ArgumentError: There is neither data nor a known input shape.

    Example:
        >>> import keras, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> memfit.profile(model, batch_size=32).gradients
        20
    """
    fit_arguments_of.check_model(model)
    backend = backends.current()
    arguments = fit_arguments_of.bound(model, args, fit_arguments)
    if arguments.get("x") is None:
        arguments = fit_arguments_of.with_synthetic_data(model, arguments)
    found, arguments = batches_of.described(arguments)
    return deciding.profiled(model, found, backend)


def budget(spec: Any = None) -> Budget:
    """What training may take on this machine now, and how that is known.

    Args:
        spec: None for what the machine allows; bytes, a text like "12 GiB" or a preset like "colab-t4" for less.

    Raises:
        BudgetError: The budget is not positive, cannot be read, or is more than the machine has.

    Example:
        >>> import memfit
        >>> memfit.budget("2 GiB").limiting_bytes
        2147483648
    """
    return budgeting.budget(spec, backend=backends.current())


@dataclasses.dataclass(frozen=True)
class _Asked:
    """memfit's own arguments, as they were passed, and what the supervisor allows beside them."""

    budget: Any
    plan: Any
    allow: Collection[str]
    micro_batch_size: Any
    probe: bool | None
    attempt: Attempt | None = None


def _prepared(model: Any, args: tuple[Any, ...], given: dict[str, Any], asked: _Asked, log: Log) -> Prepared:
    """Checks every argument, looks at the data, and decides."""
    fit_arguments_of.check_model(model)
    allow = fit_arguments_of.checked_allow(asked.allow)
    micro_batch_size = fit_arguments_of.checked_micro_batch_size(asked.micro_batch_size)
    arguments = fit_arguments_of.bound(model, args, given)
    backend = backends.current()
    backend.release()  # models of earlier calls are cycles, and their graphs and programs lie in the framework
    budget = budgeting.budget(asked.budget, backend=backend)
    log.add("budget", str(budget))
    room = budget.host_bytes - budgeting.reading(backend).host_bytes
    arguments, changes, held = given_data.within(arguments, room)
    for change in changes:
        log.add("data", change)
    found, arguments = batches_of.described(arguments)
    found = dataclasses.replace(found, reading=found.reading + held)
    queue = _queue(arguments["x"], found, room)
    if queue is not None:
        found = dataclasses.replace(found, queued=queue.batches)
    if queue is not None and queue.reason:
        log.add("data", f"x: {queue.reason}")
    wanted = fit_arguments_of.checked_plan(asked.plan, micro_batch_size, found.batch_size)
    if wanted is not None:
        micro_batch_size = wanted.micro_batch_size
        allow = allow if wanted.exact else allow | {"inexact_micro_batch"}
    request = Request(
        budget=budget,
        allow=allow,
        micro_batch_size=micro_batch_size,
        fixed=wanted,
        probe=asked.probe,
        quiet=arguments.get("verbose") == 0,
        validation_batch_size=arguments.get("validation_batch_size"),
        bounded=asked.budget is None and backend.bounds_host,
        attempt=asked.attempt,
    )
    deciding.refuse_unbuilt(model, request, backend)
    look = deciding.built_with_look(model, found, arguments)
    with random_state.preserved():  # what planning draws must not change the order of the batches
        decision = deciding.decide(model, found, request, backend=backend)
    for event in decision.findings:
        log.add(*event)
    if decision.plan.validation_batch_size is not None:
        own = arguments.get("validation_batch_size") or decision.plan.validation_batch_size
        arguments = {**arguments, "validation_batch_size": min(own, decision.plan.validation_batch_size)}
    shrink = functools.partial(deciding.smaller, model=model, batches=found, request=request, backend=backend)
    again = functools.partial(_replanned, model=model, found=found, request=request, backend=backend)
    changes_shape = found.spec is not None and batches_of.may_change_shape(model, arguments["x"])
    batch_bytes = layers.tensor_bytes(found.spec) if changes_shape else 0
    return Prepared(decision, arguments, backend, shrink, again if changes_shape else None, batch_bytes, queue, look)


def _queue(data: Any, found: batches_of.Batches, room: int) -> queues.Queue | None:
    """The queue for a user's ``PyDataset`` whose own would not fit."""
    if not isinstance(data, keras.utils.PyDataset) or hasattr(data, "batch_spec") or found.spec is None:
        return None
    return queues.bounded(data, layers.tensor_bytes(found.spec), room)


def _replanned(
    spec: Any, *, model: Any, found: batches_of.Batches, request: Request, backend: Backend
) -> Decision | None:
    """The decision for a batch of other shapes, in the middle of a run; None where the user has set it by hand."""
    if request.micro_batch_size is not None or request.fixed is not None:
        return None
    size = keras_seam.flatten(spec)[0].shape[0]
    with random_state.preserved():
        larger = dataclasses.replace(found, spec=spec, batch_size=size)
        return deciding.decide(model, larger, dataclasses.replace(request, quiet=True, attempt=None), backend=backend)


def _fitted(model: Any, prepared: Prepared, keeping: keeping_of.Keeping | None, log: Log) -> Any:
    """Trains as it was decided; gives Keras' History with the report."""
    decision = prepared.decision
    arguments, feed_reason = feeding.streamed(prepared.arguments)
    if feed_reason is not None:
        streamed_plan = dataclasses.replace(decision.plan.because(feed_reason), streamed=True)
        decision = dataclasses.replace(decision, plan=streamed_plan)
    quiet = arguments.get("verbose") == 0
    say(decision.plan.summary, quiet=quiet)
    log.add("plan", str(decision.plan))
    for sentence in noticed.sentences(model, prepared.arguments, decision.plan.budget.host_bytes):
        say(f"memfit: {sentence}", quiet=quiet)
        log.add("note", sentence)
    planned = log.seconds
    if keeping is not None and keeping.completes:
        session.note_plan(keeping.folder, decision.plan)
    tell = functools.partial(log.add, "snapshot")
    recorder = Recorder(prepared.backend, budget=decision.plan.budget, tell=log.add, clock=lambda: log.seconds)
    if prepared.queue is not None and prepared.queue.reason:
        say(f"memfit: {prepared.queue.reason}", quiet=quiet)
    with (
        given_data.ended(arguments),
        monitor.joined(arguments, recorder, log),
        Watcher(prepared.backend, notify=recorder.add) as watcher,
        keeping_of.kept(
            model,
            progress.added(arguments, lambda: watcher.peak, decision.plan.budget),
            keeping,
            backend=prepared.backend,
            tell=tell,
            looks=keras_order.draws_first(model, prepared.look),
        ) as arguments,
    ):
        recorder.add(watcher.held(), sampling=False)  # a run may end before the first sample is due
        watching = (monitor.Places(recorder),)
        prepared = dataclasses.replace(prepared, decision=decision, arguments=arguments, watching=watching)
        history, decision = carried_out(model, prepared, watcher, log)
    if prepared.backend.device_memory() is not None:
        prepared.backend.release()
    report = RunReport(
        decision.plan,
        decision.profile,
        log.events,
        watcher.peak,
        log.seconds,
        planned,
        recorder.timeline(),
        planned=decision.planned,
    )
    if history is not None:
        history.memfit = report
    return history
