"""From a model, its batches and a request to a decision: a plan, how to split for it, and what was found on the way."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.errors import ArgumentError, DoesNotFitError
from memfit.executing.arguments import check_fits_model
from memfit.levers import micro_batch
from memfit.planning import planner
from memfit.predicting import Predictions
from memfit.profiling.batches import Batches
from memfit.records import Budget, Consumer, Estimate, Plan, Profile, Split
from memfit.reporting.console import shown
from memfit.units import text

_ROOMY = 2
"""A crude bound this many times under the budget needs no analysis."""

_MOST_TRIALS = 2
"""The plan is tried, and once more where the first trial has made it smaller."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked of the planner.

    Attributes:
        budget: What training may take.
        allow: Levers that change the result and may be pulled.
        micro_batch_size: Set by hand or by a plan; None to find it.
        fixed: The plan to follow, where one was passed.
        probe: Whether a trial in a child process confirms the plan; None where the analysis is weak.
        quiet: Whether to show nothing while it takes long.
    """

    budget: Budget
    allow: frozenset[str]
    micro_batch_size: int | None = None
    fixed: Plan | None = None
    probe: bool | None = None
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """A plan and how to carry it out.

    Attributes:
        plan: The plan.
        split: How its batches are split, or None.
        profile: What was predicted, or None.
        findings: ``(kind, sentence)`` for the report.
    """

    plan: Plan
    split: Split | None = None
    profile: Profile | None = None
    findings: tuple[tuple[str, str], ...] = ()


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
    check_fits_model(model, batches.spec)
    _build(model, batches.spec)
    blocked = micro_batch.blocked_reason(model)
    if blocked is not None:
        return _unsplit(batches, request, blocked)
    if request.fixed is not None and request.micro_batch_size is None:
        return Decision(request.fixed)
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
    _build(model, batches.spec)
    prediction = Predictions(model, batches.spec, backend, quiet=False)
    whole = prediction.profile(prediction.peak(None))
    return dataclasses.replace(
        whole, validation_peak=prediction.other_peak("test"), prediction_peak=prediction.other_peak("predict")
    )


def smaller(decision: Decision, model: Any, batches: Batches, request: Request, *, backend: Backend) -> Decision | None:
    """The decision with half the micro-batch, for a step that ran out of memory; None where nothing smaller is left.

    A whole batch is split in two where the model allows it.
    """
    plan = decision.plan
    now = plan.micro_batch_size or plan.batch_size
    if now is None or now <= 1 or micro_batch.blocked_reason(model) is not None:
        return None
    reason = f"{now} samples at once ran out of memory"
    smaller_plan = dataclasses.replace(plan.because(reason), micro_batch_size=-(-now // 2), peak=None)
    if decision.split is not None:
        split = dataclasses.replace(decision.split, micro_batch_size=-(-now // 2))
        return dataclasses.replace(decision, plan=smaller_plan, split=split)
    finding = _separability(model, batches, request, backend)
    if finding.split is None and "inexact_micro_batch" not in request.allow:
        return None
    return _split_decision(smaller_plan, finding, -(-now // 2), decision.profile)


def _unsplit(batches: Batches, request: Request, reason: str) -> Decision:
    if request.micro_batch_size is not None:
        raise ArgumentError(
            f"The batch cannot be split: {reason}. Received: micro_batch_size={request.micro_batch_size}. Leave it out."
        )
    return Decision(planner.plain(batches.batch_size, request.budget, None, reason), findings=(("note", reason),))


def _build(model: Any, spec: Any) -> None:
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
    plan = request.fixed or Plan(
        batches.batch_size, size, request.budget, reasons=(f"micro-batches of {size} set by hand",)
    )
    if finding.split is None and "inexact_micro_batch" not in request.allow:
        raise ArgumentError(
            f"The batch cannot be split exactly: {finding.reason}. Received: micro_batch_size={size}. "
            'Leave it out, or pass allow={"inexact_micro_batch"} to split all the same.'
        )
    return _split_decision(plan, finding, size)


def _split_decision(
    plan: Plan, finding: micro_batch.Separability, size: int, profile: Profile | None = None
) -> Decision:
    split = dataclasses.replace(finding.split or Split(size), micro_batch_size=size)
    plan = dataclasses.replace(plan.because(finding.reason), exact=finding.split is not None)
    return Decision(plan, split, profile, (("separability", finding.reason),))


def _separability(model: Any, batches: Batches, request: Request, backend: Backend) -> micro_batch.Separability:
    with shown("testing on a tiny batch whether the model treats samples apart", quiet=request.quiet):
        return micro_batch.separability(model, batches.sample(micro_batch.SAMPLES), backend)


def _found(model: Any, batches: Batches, request: Request, backend: Backend) -> Decision:
    """The fastest plan that fits, confirmed by a trial where that is asked for or the analysis is weak."""
    ceiling = request.budget.limiting_bytes
    prediction = Predictions(model, batches.spec, backend, quiet=request.quiet)
    crude = prediction.crude()
    if request.probe is not True and (crude.upper * _ROOMY <= ceiling or crude.upper - crude.margin < 0):
        reason = f"it fits by far: {text(crude.upper)} at most of {text(ceiling)}"
        return Decision(planner.plain(batches.batch_size, request.budget, crude, reason))
    search = _Search(model, batches, request, backend, prediction)
    decision = search.decision()
    probe = prediction.is_weak(decision.split) if request.probe is None else request.probe
    for _ in range(_MOST_TRIALS if probe else 0):
        tried = prediction.confirmed(decision.split)
        if tried is None:
            reason = "no trial could be made: there is no room for a child process, or the model cannot be sent to one"
            return dataclasses.replace(decision, plan=decision.plan.because(reason))
        if tried.upper <= ceiling:
            plan = decision.plan.because(f"a trial in a child process peaked at {text(tried.bytes)}")
            return dataclasses.replace(decision, plan=dataclasses.replace(plan, peak=tried))
        decision = search.decision()
    return decision


class _Search:
    """The search for the fastest plan that fits one budget; asked again, it reckons with what trials have taught since."""

    def __init__(
        self, model: Any, batches: Batches, request: Request, backend: Backend, prediction: Predictions
    ) -> None:
        self._batches = batches
        self._request = request
        self._prediction = prediction
        self._finding = functools.cache(lambda: _separability(model, batches, request, backend))

    def decision(self) -> Decision:
        """The whole batch where it fits, else the largest micro-batch.

        Raises:
            DoesNotFitError: Nothing does.
        """
        batch_size, budget = self._batches.batch_size or 1, self._request.budget
        ceiling = budget.limiting_bytes
        whole = self._prediction.peak(None)
        profile = self._prediction.profile(whole)
        validation = self._prediction.validation_batch_size(batch_size, ceiling)
        if whole.upper <= ceiling:
            reason = f"the whole batch fits: {text(whole.upper)} of {text(ceiling)}"
            plan = planner.plain(self._batches.batch_size, budget, whole, reason)
            return Decision(dataclasses.replace(plan, validation_batch_size=validation), profile=profile)
        finding = self._finding()
        if finding.split is None and "inexact_micro_batch" not in self._request.allow:
            raise DoesNotFitError(
                _mixes_text(self._batches, whole, finding, ceiling=ceiling, consumers=profile.consumers)
            )
        base = finding.split or Split(1)
        try:
            plan = planner.split(
                batch_size,
                budget,
                whole,
                lambda size: self._prediction.peak(dataclasses.replace(base, micro_batch_size=size)),
            )
        except DoesNotFitError as error:
            consumers = planner.consumers_text(profile.consumers)
            raise DoesNotFitError(f"{error} The largest consumers: {consumers}.") from None
        plan = dataclasses.replace(plan, validation_batch_size=validation)
        return _split_decision(plan, finding, plan.micro_batch_size or 1, profile)


def _mixes_text(
    batches: Batches,
    whole: Estimate,
    finding: micro_batch.Separability,
    *,
    ceiling: int,
    consumers: tuple[Consumer, ...],
) -> str:
    return (
        f"The batch of {batches.batch_size} needs {text(whole.upper)}, the budget is {text(ceiling)}, and the batch cannot be "
        f"split exactly: {finding.reason}. The largest consumers: {planner.consumers_text(consumers)}. The smallest budget "
        f'that would do for the whole batch is {text(whole.upper)}. Pass allow={{"inexact_micro_batch"}} to split all the '
        "same, with statistics of each part; or take a smaller batch_size."
    )
