"""From a model, its batches and a request to a decision: a plan, how to split for it, and what was found on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from typing import Any

from memfit.arranging import Arrangements, Decision, Request
from memfit.backends import keras_data, keras_optimizer, keras_order, keras_seam, random_state
from memfit.backends.protocol import Backend
from memfit.errors import ArgumentError, DoesNotFitError
from memfit.executing.arguments import check_fits_model
from memfit.levers import micro_batch
from memfit.levers.pulled import pulled
from memfit.planning import planner
from memfit.predicting import Predictions
from memfit.profiling import layers, peak
from memfit.profiling.batches import Batches
from memfit.records import Estimate, Plan, Profile, Split
from memfit.reporting.console import shown
from memfit.units import MIB, text

_ROOMY = 2
"""A crude bound this many times under the budget needs no analysis."""

_AFTER_FAILURE = 0.75

_MORE_CAUTION = 0.5
"""Of what was left out of margins, what comes back into them after a failure."""

_LARGE_SLOTS = 8 * MIB
"""Fewer are made, and what is refused then is refused knowing more."""

_MOST_TRIALS = 2
"""The plan is tried, and once more where the first trial has made it smaller."""


def decide(model: Any, batches: Batches, request: Request, *, backend: Backend) -> Decision:
    """The plan for a run. Builds the model where it is not built yet, as ``fit`` would; changes nothing else.

    Raises:
        ArgumentError: The data does not fit the model, or the micro-batch by hand cannot be exact and that is not allowed.
        DoesNotFitError: No plan fits the budget.
    """
    blocked = micro_batch.blocked_reason(model) if keras_seam.is_built(model) else None
    if batches.spec is None or keras_seam.overrides(model, "train_step"):
        blocked = blocked or micro_batch.blocked_reason(model)
        return _unsplit(
            batches, request, blocked or "the data does not tell the shapes of its batches: nothing is predicted"
        )
    refuse_unbuilt(model, request, backend)
    build_ahead(model, batches)
    blocked = micro_batch.blocked_reason(model)
    if blocked is not None:
        return _unsplit(batches, request, blocked)
    if request.fixed is not None and request.micro_batch_size is None:
        return _fixed(model, request.fixed, backend)
    if request.micro_batch_size is not None:
        return _by_hand(model, batches, request, backend)
    return _found(model, batches, request, backend)


def profiled(model: Any, batches: Batches, backend: Backend) -> Profile:
    """The profile of a model at its batches' size.

    Raises:
        ArgumentError: The data does not fit the model.
    """
    if batches.spec is None:
        raise ArgumentError(
            "The data does not tell the shapes of its batches. Pass arrays, or a dataset with known shapes."
        )
    check_fits_model(model, batches.spec)
    build(model, batches.spec)
    prediction = Predictions(
        model, batches.spec, backend, quiet=False, queued=batches.queued, reading=batches.reading, rest=batches.rest
    )
    whole = prediction.profile(prediction.peak(None))
    return dataclasses.replace(
        whole, validation_peak=prediction.other_peak("test"), prediction_peak=prediction.other_peak("predict")
    )


def smaller(decision: Decision, model: Any, batches: Batches, request: Request, *, backend: Backend) -> Decision | None:
    """A decision that needs strictly less, for a step that ran out of memory; None where there is none.

    The fastest arrangement that fits with more of its margin, where the one that failed does not; else one that is predicted
    to take three quarters of the step that failed, else any less; where nothing is predicted, or the predictions are used up,
    half the micro-batch.
    """
    plan = decision.plan
    if micro_batch.blocked_reason(model) is not None:
        return None
    also = f", {plan.levers.text}" if plan.levers else ""
    reason = f"{plan.micro_batch_size or plan.batch_size} samples at once{also} ran out of memory"
    by_hand = request.micro_batch_size is not None or request.fixed is not None
    if not by_hand and not decision.halving and batches.spec is not None:
        found = _predicted_smaller(decision, model, batches, request, backend)
        if found is not None:
            return dataclasses.replace(found, plan=found.plan.because(reason))
    return _halved(decision, reason, model, batches, request, backend)


def _predicted_smaller(
    decision: Decision, model: Any, batches: Batches, request: Request, backend: Backend
) -> Decision | None:
    arrangements = decision.arrangements or Arrangements(model, batches, request, backend)
    prediction = arrangements.prediction
    budget, idle = request.budget.limiting_bytes, prediction.idle()
    while True:
        # It failed as it was reckoned with, whatever has come beside it since.
        prediction.caution = min(1.0, prediction.caution + _MORE_CAUTION)
        failed = prediction.peak(decision.split, decision.plan.levers).upper
        if prediction.caution == 1.0 or failed > budget:
            break
    for share in (_AFTER_FAILURE, 1.0) if failed <= budget else (1.0,):
        ceiling = min(budget, int(idle + share * (failed - idle)) - 1)
        with contextlib.suppress(DoesNotFitError):
            return arrangements.fastest(ceiling)
    return None


def _halved(
    decision: Decision, reason: str, model: Any, batches: Batches, request: Request, backend: Backend
) -> Decision | None:
    plan = decision.plan
    now = plan.micro_batch_size or plan.batch_size
    if now is None or now <= 1:
        return None
    half = -(-now // 2)
    plan = dataclasses.replace(plan.because(reason), micro_batch_size=half, peak=None)
    if decision.split is not None:
        split = dataclasses.replace(decision.split, micro_batch_size=half)
        return dataclasses.replace(decision, plan=plan, split=split, halving=True, planned=None)
    if batches.spec is None:
        finding = _separability(model, batches, request, backend)
    else:  # tested where there is room for that, else it would be what the process is killed for
        finding = (decision.arrangements or Arrangements(model, batches, request, backend)).separability()
    if finding.split is None and "inexact_micro_batch" not in request.allow:
        return None
    return dataclasses.replace(_split_decision(plan, finding, half), halving=True)


def _unsplit(batches: Batches, request: Request, reason: str) -> Decision:
    if request.micro_batch_size is not None:
        raise ArgumentError(
            f"The batch cannot be split: {reason}. Received: micro_batch_size={request.micro_batch_size}. Leave it out."
        )
    return Decision(planner.plain(batches.batch_size, request.budget, None, reason), findings=(("note", reason),))


def refuse_unbuilt(model: Any, request: Request, backend: Backend) -> None:
    """Says no before the slots of the optimizer are what the process is killed for.

    Raises:
        DoesNotFitError: What is held now and the slots that ``fit`` would create are above the budget.
    """
    optimizer, weights = getattr(model, "optimizer", None), model.trainable_variables if model.built else []
    if optimizer is None or optimizer.built:
        return
    num_slots = functools.cache(functools.partial(keras_optimizer.slots_to_come, optimizer))
    slots = sum(num_slots(len(weight.shape)) * layers.variable_bytes([weight]) for weight in weights)
    if slots < _LARGE_SLOTS:
        return
    held, budget = peak.on_top_of_now(Estimate(slots, 0, ""), waiting=0, backend=backend).bytes, request.budget
    if held > budget.limiting_bytes:
        raise DoesNotFitError(
            f"Training does not fit: the optimizer {type(optimizer).__name__} will hold {text(slots)} beside "
            f"{text(layers.variable_bytes(weights))} of trainable weights, {text(held)} in all with what is held already, "
            f"before any gradient or activation. The budget is {text(budget.limiting_bytes)}. Take an optimizer of fewer slots "
            "(SGD, Lion), or fewer weights: memfit.shrink.advise(model) says where they are."
        )


def build_ahead(model: Any, batches: Batches) -> None:
    """Builds the model, as ``fit`` would, where memfit plans for it; one with a ``train_step`` of its own is left to Keras.

    Raises:
        ArgumentError: The data does not fit the model.
    """
    if batches.spec is None or keras_seam.overrides(model, "train_step"):
        return
    check_fits_model(model, batches.spec)
    build(model, batches.spec)


def built_with_look(
    model: Any, found: Batches, arguments: dict[str, Any], *, isolated: bool = False
) -> keras_order.Look | None:
    """Builds the model; gives the batch that ``fit`` would have drawn for that, where it is more than random numbers."""
    was_built, is_known = keras_seam.is_built(model), keras_order.is_owed_known(model)
    look = None if found.num_samples is not None else keras_order.owed_look(model)
    if look is not None and not is_known:
        keras_order.pass_over_look(arguments)
    before = random.getstate()
    with random_state.preserved(python=False):
        if not isolated:
            build_ahead(model, found)
        elif found.spec is not None:
            build(model, found.spec)
    if keras_order.draws_itself(model):
        return None
    if look is not None and not is_known:
        look = dataclasses.replace(look, build_draws=before != random.getstate())
        keras_order.owe_look(model, look)  # also where this call trains nothing
    elif found.num_samples is not None and not was_built and not is_known:
        _keep_order(arguments, found)
    return look


def _keep_order(arguments: dict[str, Any], found: Batches) -> None:
    """memfit has built the model, which ``fit`` would have done after one draw for the order of the samples."""
    share = arguments.get("validation_split") or 0.0
    keras_data.skip_build_draw(
        int(found.num_samples * (1.0 - share)) if found.num_samples else 0,
        batch_size=arguments.get("batch_size"),
        steps=arguments.get("steps_per_epoch"),
        shuffle=arguments.get("shuffle", True),
    )


def build(model: Any, spec: Any) -> None:
    """Creates every variable, as ``fit`` would, where that is not done yet.

    Args:
        model: A compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec.

    Raises:
        ArgumentError: The data does not fit the model.
    """
    if keras_seam.is_built(model):
        return
    try:
        keras_seam.symbolic_build(model, spec)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        x, y, _ = spec
        shapes = [[leaf.shape for leaf in keras_seam.flatten(part)] for part in (x, y)]
        raise ArgumentError(
            f"The data does not fit the model: {str(error).strip()} Received: a batch of x {shapes[0]} and y {shapes[1]}. "
            "Give x the structure and shapes of the model's inputs, and y those of its outputs as the loss takes them."
        ) from error


def _by_hand(model: Any, batches: Batches, request: Request, backend: Backend) -> Decision:
    size = request.micro_batch_size or 1
    if batches.batch_size is not None and size >= batches.batch_size:
        reason = f"micro-batches of {size} hold the whole batch"
        return Decision(planner.plain(batches.batch_size, request.budget, None, reason))
    finding = _separability(model, batches, request, backend)
    if request.fixed is not None:
        _fixed(model, request.fixed, backend)
    plan = request.fixed or Plan(
        batches.batch_size, size, request.budget, reasons=(f"micro-batches of {size} set by hand",)
    )
    if finding.split is None and "inexact_micro_batch" not in request.allow:
        raise ArgumentError(
            f"The batch cannot be split exactly: {finding.reason}. Received: micro_batch_size={size}. "
            'Leave it out, or pass allow={"inexact_micro_batch"} to split all the same.'
        )
    return _split_decision(plan, finding, size)


def _fixed(model: Any, plan: Plan, backend: Backend) -> Decision:
    """A plan that was passed and does not split the batch."""
    try:
        with pulled(model, plan.levers, backend):
            return Decision(plan)
    except ValueError as error:
        raise ArgumentError(
            f"The plan is not one for this model: {error} Make one with memfit.plan(model, x, y)."
        ) from error


def _split_decision(plan: Plan, finding: micro_batch.Separability, size: int) -> Decision:
    split = dataclasses.replace(finding.split or Split(size), micro_batch_size=size)
    plan = dataclasses.replace(plan.because(finding.reason), exact=finding.split is not None)
    return Decision(plan, split, findings=(("separability", finding.reason),))


def _separability(model: Any, batches: Batches, request: Request, backend: Backend) -> micro_batch.Separability:
    with shown("testing on a tiny batch whether the model treats samples apart", quiet=request.quiet):
        # No more than the user says will fit.
        fits = request.micro_batch_size or micro_batch.SAMPLES
        samples = min(micro_batch.SAMPLES, max(micro_batch.FEWEST, fits))
        return micro_batch.separability(model, batches.sample(samples), backend)


def _found(model: Any, batches: Batches, request: Request, backend: Backend) -> Decision:
    """The fastest plan that fits, confirmed by a trial where that is asked for or the analysis is weak."""
    ceiling = request.budget.limiting_bytes
    arrangements = Arrangements(model, batches, request, backend)
    prediction = arrangements.prediction
    crude = prediction.crude()
    roomy = crude.upper * _ROOMY <= ceiling or crude.upper - crude.margin < 0
    if request.probe is not True and roomy and arrangements.compiles_within(ceiling):
        reason = f"it fits by far: {text(crude.upper)} at most of {text(ceiling)}"
        plan = planner.plain(batches.batch_size, request.budget, crude, reason)
        return Decision(dataclasses.replace(plan, validation_batch_size=arrangements.validation_batch_size(ceiling)))
    decision = arrangements.fastest()
    weak = prediction.is_weak(decision.split, decision.plan.levers)
    for _ in range(_MOST_TRIALS if (weak if request.probe is None else request.probe) else 0):
        tried = prediction.confirmed(decision.split, decision.plan.levers)
        if tried is None:
            reason = "no trial could be made: there is no room for a child process, or the model cannot be sent to one"
            return dataclasses.replace(decision, plan=decision.plan.because(reason))
        if tried.upper <= ceiling:
            plan = decision.plan.because(f"a trial in a child process peaked at {text(tried.bytes)}")
            planned = decision.planned and dataclasses.replace(decision.planned, peak=tried)
            return dataclasses.replace(decision, plan=dataclasses.replace(plan, peak=tried), planned=planned)
        decision = arrangements.fastest()
    return decision
