"""From a model, its batches and a request to a decision: a plan, how to split for it, and what was found on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend, StepKind
from memfit.errors import ArgumentError, DoesNotFitError
from memfit.executing.arguments import check_fits_model
from memfit.levers import micro_batch
from memfit.planning import planner
from memfit.probing import trial
from memfit.profiling import cache, layers, peak
from memfit.profiling.batches import Batches
from memfit.records import Budget, Consumer, Estimate, Plan, Profile, Split
from memfit.reporting.console import shown
from memfit.units import text

_ROOMY = 2
"""A crude bound this many times under the budget needs no analysis."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked of the planner.

    Attributes:
        budget: What training may take.
        allow: Levers that change the result and may be pulled.
        micro_batch_size: Set by hand or by a plan; None to find it.
        fixed: The plan to follow, where one was passed.
        quiet: Whether to show nothing while it takes long.
    """

    budget: Budget
    allow: frozenset[str]
    micro_batch_size: int | None = None
    fixed: Plan | None = None
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
    prediction = _Prediction(model, batches.spec, backend, quiet=False)
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
    """The fastest plan that fits: the whole batch, or the largest micro-batch."""
    ceiling = request.budget.limiting_bytes
    prediction = _Prediction(model, batches.spec, backend, quiet=request.quiet)
    crude = prediction.crude()
    if crude.upper * _ROOMY <= ceiling or crude.upper - crude.margin < 0:
        reason = f"it fits by far: {text(crude.upper)} at most of {text(ceiling)}"
        return Decision(planner.plain(batches.batch_size, request.budget, crude, reason))
    whole = prediction.peak(None)
    profile = prediction.profile(whole)
    validation = prediction.validation_batch_size(batches.batch_size or 1, ceiling)
    if whole.upper <= ceiling:
        reason = f"the whole batch fits: {text(whole.upper)} of {text(ceiling)}"
        plan = planner.plain(batches.batch_size, request.budget, whole, reason)
        return Decision(dataclasses.replace(plan, validation_batch_size=validation), profile=profile)
    finding = _separability(model, batches, request, backend)
    if finding.split is None and "inexact_micro_batch" not in request.allow:
        raise DoesNotFitError(_mixes_text(batches, whole, finding, ceiling=ceiling, consumers=profile.consumers))
    base = finding.split or Split(1)
    try:
        plan = planner.split(
            batches.batch_size or 1,
            request.budget,
            whole,
            lambda size: prediction.peak(dataclasses.replace(base, micro_batch_size=size)),
        )
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{error} The largest consumers: {planner.consumers_text(profile.consumers)}.") from None
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


class _Prediction:
    """The predictions for one model and batch; each is made once."""

    def __init__(self, model: Any, spec: Any, backend: Backend, *, quiet: bool) -> None:
        self._model = model
        self._spec = spec
        self._backend = backend
        self._quiet = quiet
        self._held = peak.holdings(model, spec)
        try:
            self._outputs = layers.layer_outputs(model, spec[0])
        except ValueError as error:
            raise ArgumentError(f"The data does not fit the model: {error}") from error

    def crude(self) -> Estimate:
        """A bound from shapes alone."""
        step = Estimate(peak.crude_step_bytes(self._held, self._outputs), 0, "layer shapes")
        return self._on_top_of_base(step)

    def peak(self, split: Split | None) -> Estimate:
        """The peak by analysis; where the step cannot be analysed by a trial; where that cannot be made by shapes."""
        batch = keras_seam.flatten(self._spec)[0].shape[0]
        what = f"the step at batch {batch}" + (
            "" if split is None else f" in micro-batches of {split.micro_batch_size}"
        )
        with shown(f"analysing {what}", quiet=self._quiet):
            analysed = peak.step_bytes(self._model, self._spec, split, backend=self._backend)
        if analysed is not None:
            return self._on_top_of_base(analysed)
        with shown(f"trying {what} in a child process", quiet=self._quiet):
            tried = trial.step_bytes(self._model, self._spec, split, backend=self._backend)
        if tried is not None and tried.source == trial.MEASURED:
            cache.store(cache.key(self._model, self._spec, split, "train", self._backend), tried)
        return self._on_top_of_base(tried or self._shape_step(split))

    def other_peak(self, kind: StepKind) -> Estimate | None:
        """The peak of a validation or prediction step, or None where it cannot be analysed."""
        with shown(f"analysing the {kind} step", quiet=self._quiet):
            step = peak.step_bytes(self._model, self._spec, None, backend=self._backend, kind=kind)
        return None if step is None else self._on_top_of_base(step)

    def profile(self, whole: Estimate) -> Profile:
        return peak.profile(self._model, self._spec, whole, backend=self._backend, outputs=self._outputs)

    def validation_batch_size(self, batch_size: int, ceiling: int) -> int | None:
        """A smaller batch for validation where even the forward pass of a whole one would not fit; None to leave it."""
        forward = 3 * sum(layer.bytes for layer in self._outputs[:2]) + self._held.inputs
        idle = self._on_top_of_base(Estimate(0, 0, "")).upper
        if idle + forward <= ceiling:
            return None
        return max(1, int(batch_size * max(0, ceiling - idle) / forward))

    def _shape_step(self, split: Split | None) -> Estimate:
        """A step from shapes: what the crude bound says of a part, with half of it as the margin."""
        share = 1.0 if split is None else split.micro_batch_size / keras_seam.flatten(self._spec)[0].shape[0]
        held, outputs = self._held, self._outputs
        scaled = tuple(dataclasses.replace(layer, bytes=int(layer.bytes * share)) for layer in outputs)
        num_bytes = peak.crude_step_bytes(dataclasses.replace(held, inputs=int(held.inputs * share)), scaled)
        return Estimate(num_bytes // 2, num_bytes - num_bytes // 2, "layer shapes")

    def _on_top_of_base(self, step: Estimate) -> Estimate:
        return peak.on_top_of_now(step, held=self._held, backend=self._backend)
