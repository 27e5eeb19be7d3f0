"""The fastest arrangement of one model and batch within a budget: options from the levers, predictions, and proof."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.errors import DoesNotFitError
from memfit.levers import allowed, micro_batch, remat, without_xla
from memfit.levers.pulled import pulled
from memfit.levers.verification import Verification, verified
from memfit.planning import fastest, planner
from memfit.planning.fastest import Found, Option
from memfit.predicting import Predictions
from memfit.profiling.batches import Batches
from memfit.profiling.rate import matrix_rate, page_seconds
from memfit.records import NO_LEVERS, Budget, Estimate, Levers, Plan, Profile, Remat, Split
from memfit.reporting.console import shown
from memfit.units import GIB, MIB, text

_WORTH = 0.02
"""A further option is analysed where it may save this share of a step's time."""

_RUNGS = 8

_HALF = 0.5
"""What half precision leaves of a step's activations at the least."""

_FASTEST = 0.5
"""The time of a step is never reckoned to be a smaller share of the plain step's."""

_UNKNOWN_PART = 0.02
"""What a part is said to add to the time of a step where the model's operations cannot be counted."""

_TEST_SHARE = 0.25
"""Of the room that is left, what a step of a tiny batch may take: a test holds two steps' results and what runs them."""

_UPDATE = 3
_RESULTS = 2
"""Gradients' worth of a step that does not grow with the batch, and of a test: what it compares, as it updates nothing."""

_SAFE_TEST = 6
"""Rooms of so many times the gradients, and of the bytes below, are enough to test the model in."""

_SAFE_ROOM = 192 * MIB

_ROOM_TO_COMPILE = 2 * GIB
"""Where there is more room, no step is asked what compiling it takes."""

_COMPILING_IN_PARTS = 2
_COMPILING_RECOMPUTED = 4 / 3
"""What compiling a step with XLA takes, of what the plain step's does: a program in parts has the model twice, before its loop
and in it, and one that recomputes has a fourth pass beside the three of a step."""

_OPTIMISM = 0.75
"""Of what a lever is guessed to leave of a step; what even this puts above the budget is not analysed."""


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
        validation_batch_size: Samples of a validation step, where another number than the training step's was asked for.
        bounded: Whether a step that takes more than the budget fails and is tried again smaller, so that margins may be
            what is mostly enough.
    """

    budget: Budget
    allow: frozenset[str]
    micro_batch_size: int | None = None
    fixed: Plan | None = None
    probe: bool | None = None
    quiet: bool = False
    validation_batch_size: int | None = None
    bounded: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """A plan and how to carry it out.

    Attributes:
        plan: The plan.
        split: How its batches are split, or None.
        profile: What was predicted of the plain step, or None.
        findings: ``(kind, sentence)`` for the report.
        arrangements: What it was found among, to be asked again after a failure; None where nothing was predicted.
        halving: Whether failures have used up what predictions can tell apart, so that the next only halves the parts.
        planned: What was predicted of the step as it is planned, or None.
    """

    plan: Plan
    split: Split | None = None
    profile: Profile | None = None
    findings: tuple[tuple[str, str], ...] = ()
    arrangements: Arrangements | None = dataclasses.field(default=None, repr=False, compare=False)
    halving: bool = False
    planned: Profile | None = None


class Arrangements:
    """The arrangements of one model and batch; asked again, it reckons with what trials have taught since."""

    def __init__(self, model: Any, batches: Batches, request: Request, backend: Backend) -> None:
        self._model = model
        self._batches = batches
        self._request = request
        self._backend = backend
        self._dropped: list[str] = []
        self.prediction = Predictions(
            model,
            batches.spec,
            backend,
            quiet=request.quiet,
            queued=batches.queued,
            reading=batches.reading,
            caution=0.0 if request.bounded else 1.0,
        )
        self.separability = functools.cache(self._separability)
        self._chain = functools.cache(lambda: remat.chain(model, batches.spec))
        self._inexact = functools.cache(lambda: allowed.combinations(model, batches.spec, request.allow, backend))
        self._without_xla = functools.cache(lambda: without_xla.cost(model, backend))

    def fastest(self, ceiling: int | None = None) -> Decision:
        """The fastest arrangement that fits, verified on the model where it is not the plain step.

        Args:
            ceiling: Bytes that its peak may reach, margin included; the budget's where left out.

        Raises:
            DoesNotFitError: Nothing does.
        """
        budget = self._request.budget
        ceiling = budget.limiting_bytes if ceiling is None else ceiling
        self._refuse_uncompiled(ceiling)
        whole = self._peak(None, NO_LEVERS, ceiling)
        profile = self.prediction.profile(whole)
        uncompiled = Levers(xla_off=self._uncompiled(None, NO_LEVERS, ceiling) is not None)
        with pulled(self._model, uncompiled, self._backend):
            validation = self.validation_batch_size(ceiling)
        if whole.upper <= ceiling:
            reason = f"the whole batch fits: {text(whole.upper)} of {text(ceiling)}"
            plan = planner.plain(self._batches.batch_size, budget, whole, reason)
            plan = dataclasses.replace(plan, validation_batch_size=validation)
            return Decision(plan, profile=profile, arrangements=self, planned=profile)
        plan, split = self._under(ceiling, whole, profile)
        plan = dataclasses.replace(plan, validation_batch_size=validation)
        finding = self.separability() if split is not None else None
        findings = () if finding is None else (("separability", finding.reason),)
        kept = {} if plan.levers.remat is None else remat.held_shares(self._chain(), plan.levers.remat)
        planned = self.prediction.planned(profile, plan, kept)
        return Decision(plan, split, profile, findings, arrangements=self, planned=planned)

    def validation_batch_size(self, ceiling: int) -> int | None:
        """Samples of a validation step that fit, where those that were asked for do not; None to leave it."""
        wanted = self._request.validation_batch_size or self._batches.batch_size or 1
        fits, _ = self.prediction.forward_batch_size("test", wanted, ceiling)
        return None if fits >= wanted else max(1, fits)

    def _under(self, ceiling: int, whole: Estimate, profile: Profile) -> tuple[Plan, Split | None]:
        """The plan under a ceiling that the plain step is above, and its split."""
        batch_size, part_time = self._batches.batch_size or 1, self._part_time()
        self._refuse_untested(ceiling, whole, profile)
        while True:
            search = fastest.search(
                self._options(),
                batch_size,
                predict=functools.partial(self._predicted, ceiling),
                ceiling=ceiling,
                part_time=part_time,
                splits=batch_size > 1 and self._may_split,
                guess=functools.partial(self._guessed, whole),
                worth=_WORTH,
            )
            if search.fastest is None:
                raise DoesNotFitError(self._refusal(search.smallest, ceiling, profile))
            proof = self._proof(search.fastest)
            if proof.agrees:
                break
            self._dropped.append(proof.reason)
        plan = planner.arranged(batch_size, self._request.budget, whole, search)
        split = None if plan.micro_batch_size is None else self._split(plan.micro_batch_size)
        plan = plan.because(*self._dropped, proof.reason, *self._could_allow(ceiling))
        if not plan.levers.exact:
            plan = plan.because("what was allowed was pulled, so that the result is not that of model.fit to rounding")
        exact = plan.levers.exact and (split is None or self.separability().split is not None)
        self.prediction.prepare(split, plan.levers)
        return dataclasses.replace(plan, exact=exact), split

    def _refuse_uncompiled(self, ceiling: int) -> None:
        """Says no before the compiler is what the process is killed for.

        Raises:
            DoesNotFitError: There is less room than the compiler takes.
        """
        if self._backend.device_memory() is not None or ceiling - self.prediction.idle() > _ROOM_TO_COMPILE:
            return
        if self._without_xla() is not None:  # the plan may do without the compiler
            return
        compiling = self.prediction.compiling
        idle = self.prediction.idle()  # asked now, as the guess has made the backend forget programs
        room = ceiling - idle
        if compiling and compiling > room:
            raise DoesNotFitError(
                f"Training does not fit: compiling its step takes about {text(compiling)}, the budget of {text(ceiling)} "
                f"leaves {text(max(0, room))}, and the step itself may take more. The smallest budget that would do is above "
                f"{text(idle + compiling)}. {self._consumers(self.prediction.profile(self.prediction.crude()))} The batch size "
                "does not matter to the compiler: take a larger budget, or a model of fewer layers."
            )

    def _refuse_untested(self, ceiling: int, whole: Estimate, profile: Profile) -> None:
        """Says no before anything runs on the model, where the room is small and no arrangement would fit.

        The tests of separability and of the plan hold two or three times the gradients: under a budget that allows no plan
        they would be what the process is killed for. Whole batches are asked about as well: a split step holds sums of
        gradients beside its activations, so that it can be the larger one.

        Raises:
            DoesNotFitError: Neither single samples, were the split exact, nor the whole batch would fit.
        """
        if ceiling - self.prediction.idle() > _SAFE_TEST * profile.gradients + _SAFE_ROOM:
            return
        plain, *others = sorted(self._options(), key=lambda one: (bool(one.key), one.key.xla_off, one.time))
        batch_size = self._batches.batch_size or 1
        without_xla = [one for one in others if one.key == Levers(xla_off=True)]
        asked = [Found(plain, batch_size, whole, plain.time)]
        asked += [Found(one, batch_size, self.prediction.peak(None, one.key), one.time) for one in without_xla]
        for size, some in ((1, (plain, *without_xla, *others[-1:])), (batch_size, others)):
            for option in some:
                split = Split(size) if size < batch_size else None
                if self._guessed(whole, option.key, size) <= ceiling:
                    asked.append(Found(option, size, self._peak(split, option.key, ceiling), option.time))
                    if asked[-1].peak.upper <= ceiling:
                        return
        least = min(asked, key=lambda found: found.peak.upper)
        raise DoesNotFitError(self._refusal(least, ceiling, profile, tested=False))

    def _part_time(self) -> float:
        """What each part after the first adds to the time of a step, relative to the plain step."""
        if remat.blocked_reason(self._model) is not None:
            return _UNKNOWN_PART
        chain = self._chain()
        return self._backend.step_costs().part(chain.cost, num_layers=chain.rounds, rate=matrix_rate())

    @property
    def _may_split(self) -> bool:
        return self.separability().split is not None or "inexact_micro_batch" in self._request.allow

    def _separability(self) -> micro_batch.Separability:
        sample = self._sample(micro_batch.FEWEST)
        if sample is None:
            return micro_batch.Separability(
                None, None, "there is no room to test whether the model treats samples apart"
            )
        text = "testing on a tiny batch whether the model treats samples apart"
        with shown(text, quiet=self._request.quiet), self.prediction.testing():
            return micro_batch.separability(self._model, sample, self._backend)

    def _sample(self, fewest: int) -> Any | None:
        """A tiny batch to test the model on: as many samples as the room allows, or None where it allows fewer than so many."""
        idle, gradients = self.prediction.idle(), self.prediction.gradients
        # Tests run in the framework's own kernels.
        step = self.prediction.peak(None, Levers(xla_off=self._without_xla() is not None)).bytes - idle
        room = self._request.budget.limiting_bytes - idle
        one = max(1.0, (step - _UPDATE * gradients) / (self._batches.batch_size or 1))
        if _RESULTS * gradients + fewest * one > room:
            return None
        most = fewest if self._backend.keeps_freed(self._model) else int(_TEST_SHARE * room / one)
        return self._batches.sample(min(micro_batch.SAMPLES, max(fewest, most)))

    def _split(self, size: int) -> Split:
        return dataclasses.replace(self.separability().split or Split(1), micro_batch_size=size)

    def _options(self) -> list[Option[Levers]]:
        """Every rung of recomputation with every combination of the other levers."""
        own_pages, without_xla = self._backend.step_costs().own_pages, self._without_xla()
        ways = [(False, False, 0.0)]
        ways += [] if own_pages is None else [(True, False, own_pages)]
        ways += [] if without_xla is None else [(False, True, without_xla)]
        return [
            Option(
                dataclasses.replace(inexact.levers, remat=rung, own_pages=own, xla_off=off), inexact.time * time + more
            )
            for inexact in self._inexact()
            for rung, time in self._rungs()
            for own, off, more in ways
        ]

    def _rungs(self) -> list[tuple[Remat | None, float]]:
        """What may be recomputed, and the time of a step relative to the plain one."""
        rungs: list[tuple[Remat | None, float]] = [(None, 1.0)]
        if self._dropped or remat.blocked_reason(self._model) is not None:
            return rungs
        chain, costs = self._chain(), self._backend.step_costs()
        pages = page_seconds() if costs.fresh_pages else 0.0
        faulting = costs.faulting(chain.cost, activations=chain.plain_bytes, rate=matrix_rate(), page_seconds=pages)
        for rung in remat.ladder(chain, _RUNGS):
            again = remat.recomputation(chain, rung) / max(chain.cost, 1e-9)
            kept = remat.peak_bytes(chain, rung) / max(1, chain.plain_bytes)
            rungs.append((rung, max(_FASTEST, costs.recomputed(again, kept=kept, faulting=faulting))))
        return rungs

    def _predicted(self, ceiling: int, levers: Levers, size: int) -> Estimate:
        whole = size >= (self._batches.batch_size or 1)
        return self._peak(None if whole else self._split(size), levers, ceiling)

    def _peak(self, split: Split | None, levers: Levers, ceiling: int) -> Estimate:
        """The predicted peak of a step; where XLA would take more than the room to compile it, that, and it is not compiled."""
        return self._uncompiled(split, levers, ceiling) or self.prediction.peak(split, levers)

    def _uncompiled(self, split: Split | None, levers: Levers, ceiling: int) -> Estimate | None:
        """What is held at the least while XLA compiles a step, where that is above the ceiling; else None."""
        if self._without_xla() is None or levers.xla_off or self._backend.device_memory() is not None:
            return None
        compiling: float = self.prediction.compiling
        if split is not None or levers:
            compiling = max(compiling, self._peak(None, NO_LEVERS, ceiling).compiling)
            compiling *= 1 if split is None else _COMPILING_IN_PARTS
            compiling *= 1 if levers.remat is None else _COMPILING_RECOMPUTED
        held = self.prediction.idle() + int(compiling)
        return (
            Estimate(held, 0, "a guess of what compiling takes", compiling=int(compiling)) if held > ceiling else None
        )

    def _guessed(self, whole: Estimate, levers: Levers, size: int) -> int:
        """A bound from below: the step scaled by the share of the samples and of the activations that are kept.

        What is fixed is not scaled. It also bounds what analysing another step takes: TensorFlow traces its graph.
        """
        kept = 1.0
        if levers.remat is not None:
            chain = self._chain()
            kept = remat.peak_bytes(chain, levers.remat) / max(1, chain.plain_bytes)
        if levers.precision is not None:
            kept *= _HALF
        if levers.xla_off:
            whole = self.prediction.peak(None, Levers(xla_off=True))
        idle = self.prediction.idle()
        share = kept * size / (self._batches.batch_size or 1)
        step = whole.fixed + share * max(0, whole.upper - idle - whole.fixed)
        return int(idle - allowed.saved_bytes(self._model, levers) + _OPTIMISM * step)

    def _proof(self, found: Found[Levers]) -> Verification:
        """The comparison with the plain step; of micro-batches alone the test of separability is the proof."""
        computing = dataclasses.replace(found.option.key, own_pages=False, xla_off=False)
        if not computing and found.size >= (self._batches.batch_size or 1):
            return Verification(True, None, "the step is the plain step")
        if not computing:
            finding = self.separability()
            return Verification(True, finding.difference, finding.reason)
        # Where parts differ from the whole by what the user allowed, the other levers are compared alone.
        splits = found.size < (self._batches.batch_size or 1) and self.separability().split is not None
        sample, split = self._sample(micro_batch.FEWEST if splits else 1), None
        if sample is None and (splits or dataclasses.replace(computing, optimizer_state=None)):
            return Verification(
                True, None, "not compared with the plain step: there is no room for one of a tiny batch"
            )
        if splits:
            split = self._split(min(micro_batch.PART, keras_seam.flatten(sample)[0].shape[0] - 1))
        text = "comparing the plan with the plain step on a tiny batch"
        with shown(text, quiet=self._request.quiet), self.prediction.testing():
            return verified(self._model, sample, computing, split, backend=self._backend)

    def _could_allow(self, ceiling: int, *, tested: bool = True) -> tuple[str, ...]:
        """What the user could allow to go faster or to need less, and why what is allowed was not pulled."""
        asked = self._model, self._batches.spec, self._request.allow, self._backend
        sentences = [*allowed.refused(*asked), *allowed.proposed(*asked, ceiling=ceiling)]
        if tested and not self._may_split and (self._batches.batch_size or 1) > 1:
            sentences.append(
                f"the batch was not split: {self.separability().reason}; "
                'allow={"inexact_micro_batch"} splits it all the same, with statistics of each part'
            )
        return tuple(sentences)

    def _refusal(self, smallest: Found[Levers], ceiling: int, profile: Profile, *, tested: bool = True) -> str:
        batch_size = self._batches.batch_size or 1
        sentences = [planner.refusal(smallest, batch_size, ceiling), *self._dropped]
        sentences += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in self._could_allow(ceiling, tested=tested)]
        blocked = remat.blocked_reason(self._model)
        if blocked is not None:
            sentences.append(f"Nothing can be recomputed: {blocked}.")
        sentences.append(f"{self._consumers(profile)} Take a smaller batch_size or a smaller model.")
        return " ".join(sentences)

    @staticmethod
    def _consumers(profile: Profile) -> str:
        return f"The largest consumers: {planner.consumers_text(profile.consumers)}."
