"""The fastest arrangement of one model and batch within a budget: options from the levers, predictions, and proof."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.compiling import CompiledPeaks
from memfit.errors import DoesNotFitError, OutOfMemoryError
from memfit.levers import allowed, apart, micro_batch, remat, rungs, without_xla
from memfit.levers.pulled import pulled
from memfit.levers.rungs import Rung
from memfit.levers.verification import Verification, verified
from memfit.levers.ways import ways
from memfit.planning import attempt, fastest, guess, planner
from memfit.planning.attempt import Attempt
from memfit.planning.fastest import Found, Option, Search
from memfit.planning.request import Request
from memfit.predicting import Predictions
from memfit.profiling.batches import Batches
from memfit.profiling.peak import RUNTIME_RESERVE
from memfit.profiling.rate import matrix_rate
from memfit.records import NO_LEVERS, Estimate, Levers, Plan, Profile, Split
from memfit.reporting.console import say
from memfit.tiny_batches import TinyBatches
from memfit.units import GIB, MIB, text

_WORTH = 0.02
"""A further option is analysed where it may save this share of a step's time."""

_UNKNOWN_PART = 0.02
"""What a part is said to add to the time of a step where the model's operations cannot be counted."""

_SAFE_TEST = 6
"""Rooms of so many times the gradients, and of the bytes below, are enough to test the model in."""

_SAFE_ROOM = 192 * MIB

_ROOM_TO_COMPILE = 2 * GIB
"""Where there is more room, no step is asked what compiling it takes."""


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
        self._disproved: set[Levers] = set()
        self._attempts: list[str] = []
        self._begun: str | None = None
        self.prediction = Predictions(
            model,
            batches.spec,
            backend,
            quiet=request.quiet,
            queued=batches.queued,
            reading=batches.reading,
            caution=0.0 if request.bounded else 1.0,
            rest=batches.rest,
        )
        self.separability = functools.cache(self._separability)
        self._chain = functools.cache(lambda: remat.chain(model, batches.spec))
        self._inexact = functools.cache(lambda: allowed.combinations(model, batches.spec, request.allow, backend))
        self._without_xla = without_xla.cost(model, backend)
        # Tests run in the framework's own kernels.
        plain = Levers(xla_off=self._without_xla is not None)
        self._tests = TinyBatches(model, batches, self.prediction, backend, plain=plain, request=request)
        self._peaks = CompiledPeaks(self.prediction, backend, may_do_without=self._without_xla is not None)

    def fastest(self, ceiling: int | None = None) -> Decision:
        """The fastest arrangement that fits, verified on the model where it is not the plain step.

        Args:
            ceiling: Bytes that its peak may reach, margin included; the budget's where left out, where the smallest
                arrangement is attempted if nothing is predicted to fit and the request allows that.

        Raises:
            DoesNotFitError: Nothing does.
            OutOfMemoryError: Memory ran out before the first step of an attempt.
        """
        attempts = self._request.attempt if ceiling is None else None
        try:
            return self._fastest(self._request.budget.limiting_bytes if ceiling is None else ceiling, attempts)
        except Exception as error:
            if self._begun is None or isinstance(error, DoesNotFitError) or not self._backend.is_out_of_memory(error):
                raise
            what = f"Memory ran out before the first step of an attempt ({self._begun}): {error}"
            raise OutOfMemoryError(what) from error

    def _fastest(self, ceiling: int, attempts: Attempt | None) -> Decision:
        self._refuse_uncompiled(ceiling, attempts)
        whole = self._peaks.peak(None, NO_LEVERS, ceiling)
        profile = self.prediction.profile(whole)
        uncompiled = Levers(xla_off=self._peaks.uncompiled(None, NO_LEVERS, ceiling) is not None)
        with pulled(self._model, uncompiled, self._backend):
            validation = self.validation_batch_size(ceiling)
        if whole.upper <= ceiling:
            reason = f"the whole batch fits: {text(whole.upper)} of {text(ceiling)}"
            plan = planner.plain(self._batches.batch_size, self._request.budget, whole, reason)
            plan = dataclasses.replace(plan, validation_batch_size=validation)
            return Decision(plan, profile=profile, findings=self._tried(), arrangements=self, planned=profile)
        plan, split = self._under(ceiling, whole, profile, attempts)
        plan = dataclasses.replace(plan, validation_batch_size=validation)
        finding = self.separability() if split is not None else None
        findings = (*self._tried(), *(() if finding is None else [("separability", finding.reason)]))
        kept = {} if plan.levers.remat is None else remat.held_shares(self._chain(), plan.levers.remat)
        planned = self.prediction.planned(profile, plan, kept)
        return Decision(plan, split, profile, findings, arrangements=self, planned=planned)

    def validation_batch_size(self, ceiling: int) -> int | None:
        """Samples of a validation step that fit, where those that were asked for do not; None to leave it."""
        wanted = self._request.validation_batch_size or self._batches.batch_size or 1
        fits, _ = self.prediction.forward_batch_size("test", wanted, ceiling)
        return None if fits >= wanted else max(1, fits)

    def _under(
        self, ceiling: int, whole: Estimate, profile: Profile, attempts: Attempt | None
    ) -> tuple[Plan, Split | None]:
        """The plan under a ceiling that the plain step is above, and its split."""
        batch_size, part_time = self._batches.batch_size or 1, self._part_time()
        while True:
            search, tested = self._untested(ceiling, whole, profile, part_time), False
            if search is None:
                search, tested = self._search(ceiling, whole, part_time), True
            if search.fastest is None:
                refusal = self._refusal(search.smallest, ceiling, profile, tested=tested)
                search = self._attempted(search, ceiling, refusal, attempts)
            assert search.fastest is not None
            proof = self._proof(search.fastest, tested=tested)
            if proof.agrees:
                break
            self._dropped.append(proof.reason)
            self._disproved.add(search.fastest.option.key.computing)
        plan = planner.arranged(batch_size, self._request.budget, whole, search)
        split = None if plan.micro_batch_size is None else self._split(plan.micro_batch_size)
        plan = plan.because(*self._dropped, proof.reason, *self._could_allow(ceiling))
        if not plan.levers.exact:
            plan = plan.because("what was allowed was pulled, so that the result is not that of model.fit to rounding")
        exact = plan.levers.exact and (split is None or self.separability().split is not None)
        self.prediction.prepare(split, plan.levers)
        return dataclasses.replace(plan, exact=exact), split

    def _search(self, ceiling: int, whole: Estimate, part_time: float) -> Search[Levers]:
        batch_size = self._batches.batch_size or 1
        return fastest.search(
            self._options(),
            batch_size,
            predict=functools.partial(self._predicted, ceiling),
            ceiling=ceiling,
            part_time=part_time,
            splits=batch_size > 1 and self._may_split,
            guess=functools.partial(self._guessed, whole),
            worth=_WORTH,
        )

    def _attempted(
        self, search: Search[Levers], ceiling: int, refusal: str, attempts: Attempt | None
    ) -> Search[Levers]:
        """The search with the smallest arrangement that may be attempted in the place of one that fits.

        Raises:
            DoesNotFitError: Attempts are not allowed, or predictions rule them out.
        """
        batch_size, asked = self._batches.batch_size or 1, search.refused
        while attempts is not None:
            smallest = attempt.smallest(asked, ceiling)
            if smallest is None:
                break
            self._begin(attempts, planner.pulled_text(smallest, batch_size), refusal)  # the test takes memory as well
            if smallest.size >= batch_size or self._may_split:
                self._tell(attempt.step_sentence(smallest, batch_size, ceiling))
                others = tuple(found for found in asked if found != smallest)
                return dataclasses.replace(search, fastest=smallest, refused=others)
            asked = tuple(found for found in asked if found.size >= batch_size)
        raise DoesNotFitError(refusal)

    def _begin(self, attempts: Attempt, what: str, refusal: str) -> None:
        attempts(what, refusal)
        self._begun = what

    def _tell(self, sentence: str) -> None:
        """Says before an attempt that it is one."""
        say(f"memfit: {sentence}", quiet=self._request.quiet)
        self._attempts.append(sentence)

    def _tried(self) -> tuple[tuple[str, str], ...]:
        return tuple(("attempt", sentence) for sentence in self._attempts)

    def _refuse_uncompiled(self, ceiling: int, attempts: Attempt | None) -> None:
        """Says no before the compiler is what the process is killed for.

        Raises:
            DoesNotFitError: There is less room than the compiler takes, and that it compiles is not to be attempted.
        """
        if self._without_xla is not None or self.compiles_within(ceiling):  # or the plan may do without the compiler
            return
        compiling, idle = self.prediction.compiling, self.prediction.idle()
        room = ceiling - idle
        profile = self.prediction.profile(self.prediction.crude())
        refusal = planner.refusal_to_compile(compiling, ceiling, idle, profile.consumers)
        # What is held is predicted with a margin as well.
        if attempts is None or attempt.is_compiling_ruled_out(compiling, room + 2 * RUNTIME_RESERVE):
            raise DoesNotFitError(refusal)
        self._begin(attempts, "compiling its step", refusal)
        self._tell(attempt.compiling_sentence(compiling, room))

    def compiles_within(self, ceiling: int) -> bool:
        """Whether there is room to compile the plain step, as far as is known, or it is not compiled."""
        if self._backend.device_memory() is not None or ceiling - self.prediction.idle() > _ROOM_TO_COMPILE:
            return True
        compiling = self.prediction.compiling
        # What is held is asked now, as the guess has made the backend forget programs.
        return compiling == 0 or compiling <= ceiling - self.prediction.idle()

    def _untested(self, ceiling: int, whole: Estimate, profile: Profile, part_time: float) -> Search[Levers] | None:
        """What is known before anything runs on the model, where the room is small and no arrangement would fit; else None.

        The tests of separability and of the plan hold two or three times the gradients: under a budget that allows no plan
        they would be what the process is killed for. Whole batches are asked about as well: a split step holds sums of
        gradients beside its activations, so that it can be the larger one. None where single samples, were the split exact,
        or the whole batch would fit.
        """
        if not self._is_small(ceiling):
            return None
        plain, *others = sorted(self._options(), key=lambda one: (bool(one.key.computing), one.key.xla_off, one.time))
        batch_size = self._batches.batch_size or 1
        without_xla = [one for one in others if one.key.xla_off and not one.key.computing]
        asked = [Found(Option(NO_LEVERS), batch_size, whole, 1.0)]
        asked += [Found(one, batch_size, self.prediction.peak(None, one.key), one.time) for one in without_xla]
        for size, some in ((1, (plain, *without_xla, *others[-1:])), (batch_size, (plain, *others))):
            for option in some:
                split = Split(size) if size < batch_size else None
                if self._guessed(whole, option.key, size) <= ceiling:
                    step = self._peaks.peak(split, option.key, ceiling)
                    if step.upper <= ceiling:
                        return None
                    asked.append(Found(option, size, step, option.split_time(batch_size // size, part_time)))
        return Search(None, min(asked, key=lambda found: found.peak.upper), tuple(asked))

    def _part_time(self) -> float:
        """What each part after the first adds to the time of a step, relative to the plain step."""
        if remat.blocked_reason(self._model) is not None:
            return _UNKNOWN_PART
        chain = self._chain()
        return self._backend.step_costs().part(chain.cost, num_layers=chain.rounds, rate=matrix_rate())

    @property
    def _may_split(self) -> bool:
        return self.separability().split is not None or "inexact_micro_batch" in self._request.allow

    def _is_small(self, ceiling: int) -> bool:
        """Whether there is so little room that testing the model may be what does not fit."""
        return ceiling - self.prediction.idle() <= _SAFE_TEST * self.prediction.gradients + _SAFE_ROOM

    def _separability(self) -> micro_batch.Separability:
        if self._is_small(self._request.budget.limiting_bytes) and apart.is_apart(self._model):
            return micro_batch.Separability(Split(1), None, apart.REASON)
        sample = self._tests.sample(micro_batch.FEWEST)
        if sample is None:
            reason = "there is no room to test whether the model treats samples apart"
            return micro_batch.Separability(None, None, reason)
        text = "testing on a tiny batch whether the model treats samples apart"
        with self._tests.running(sample, text):
            return micro_batch.separability(self._model, sample, self._backend)

    def _split(self, size: int) -> Split:
        return dataclasses.replace(self.separability().split or Split(1), micro_batch_size=size)

    def _options(self) -> list[Option[Levers]]:
        """Every rung of recomputation with every combination of the other levers."""
        computed = [
            (dataclasses.replace(inexact.levers, remat=rung.remat), inexact.time * rung.time, rung.part_time)
            for inexact in self._inexact()
            for rung in self._rungs()
        ]
        return [
            Option(way, time + more, part_time)
            for levers, time, part_time in computed
            if levers not in self._disproved
            for way, more in ways(self._model, self._backend, levers)
        ]

    def _rungs(self) -> list[Rung]:
        """What may be recomputed, and what it costs."""
        if self._dropped or remat.blocked_reason(self._model) is not None:
            return [Rung()]
        return [Rung(), *rungs.timed(self._chain(), self._backend.step_costs())]

    def _predicted(self, ceiling: int, levers: Levers, size: int) -> Estimate:
        whole = size >= (self._batches.batch_size or 1)
        return self._peaks.peak(None if whole else self._split(size), levers, ceiling)

    def _guessed(self, whole: Estimate, levers: Levers, size: int) -> int:
        """A bound from below; what it puts above the ceiling is not analysed."""
        kept = 1.0
        if levers.remat is not None:
            chain = self._chain()
            kept = remat.peak_bytes(chain, levers.remat) / max(1, chain.plain_bytes)
        if levers.xla_off:
            whole = self.prediction.peak(None, Levers(xla_off=True))
        share, idle = size / (self._batches.batch_size or 1), self.prediction.idle()
        saved = allowed.saved_bytes(self._model, levers)
        return guess.from_below(
            whole, levers, idle=idle, share=share, kept=kept, gradients=self.prediction.gradients, saved=saved
        )

    def _proof(self, found: Found[Levers], *, tested: bool) -> Verification:
        """The comparison with the plain step; of micro-batches alone the test of separability is the proof.

        An attempt in a room too small for any test is not compared: the comparison takes more than what is attempted.
        """
        computing = found.option.key.computing
        if not computing and found.size >= (self._batches.batch_size or 1):
            return Verification(True, None, "the step is the plain step")
        if not computing:
            finding = self.separability()
            return Verification(True, finding.difference, finding.reason)
        # Where parts differ from the whole by what the user allowed, the other levers are compared alone.
        splits = found.size < (self._batches.batch_size or 1) and self.separability().split is not None
        sample, split = self._tests.sample(micro_batch.FEWEST if splits else 1) if tested else None, None
        if sample is None and (splits or dataclasses.replace(computing, optimizer_state=None)):
            reason = "not compared with the plain step: there is no room for one of a tiny batch"
            return Verification(True, None, reason)
        if splits:
            split = self._split(min(micro_batch.PART, keras_seam.flatten(sample)[0].shape[0] - 1))
        text = "comparing the plan with the plain step on a tiny batch"
        with self._tests.running(sample, text):
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
        sentences.append(f"{planner.consumers_text(profile.consumers)} Take a smaller batch_size or a smaller model.")
        return " ".join(sentences)
