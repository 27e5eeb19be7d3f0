"""The predicted peaks of one model and batch: by analysis, corrected by what trials taught; else by a trial; else by shapes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend, StepKind
from memfit.errors import ArgumentError
from memfit.levers import allowed
from memfit.levers.pulled import pulled
from memfit.planning.search import largest_micro_batch
from memfit.probing import trial
from memfit.profiling import cache, layers, peak
from memfit.records import NO_LEVERS, Estimate, Levers, Plan, Profile, Split
from memfit.reporting.console import shown

WEAK_MARGIN = 0.25
"""An analysis whose margin is a larger share of its bytes than this is to be confirmed by a trial."""

_NOTHING = Estimate(0, 0, "")

_FORWARD_FACTOR = 3
"""A forward pass holds about so many times its two largest layer outputs."""


def _resized(spec: Any, batch_size: int) -> Any:
    return keras_seam.map_leaves(lambda leaf: dataclasses.replace(leaf, shape=(batch_size, *leaf.shape[1:])), spec)


def _kept(path: str, kept: Mapping[str, float]) -> float:
    """The share of a layer, or of the innermost layer around it that has one."""
    while path not in kept and "/" in path:
        path = path.rpartition("/")[0]
    return kept.get(path, 1.0)


class Predictions:
    """The predictions for one model and batch; each is made once.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec at the full batch size.
        backend: The current backend.
        quiet: Whether to show nothing while it takes long.
        queued: Batches in flight beside the one in the step.
        reading: Bytes of the host that making batches takes beside them.
        caution: Which share of what can be left out of a margin is in it.
        rest: Samples of the smaller batch that an epoch ends with; 0 where there is none, or that is not known.

    Attributes:
        caution: As passed; may be set.

    Raises:
        ArgumentError: The data does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        spec: Any,
        backend: Backend,
        *,
        quiet: bool,
        queued: int = 1,
        reading: int = 0,
        caution: float = 1.0,
        rest: int = 0,
    ) -> None:
        self._model = model
        self._spec = spec
        self._backend = backend
        self._quiet = quiet
        self._queued = queued
        self._reading = reading
        self._rest = rest
        self.caution = caution
        self._left = 0
        self._analyses: dict[tuple[Split | None, Levers], Estimate | None] = {}
        self._held = peak.holdings(model, spec)
        self._corrections: dict[bool, tuple[str | None, cache.Correction | None]] = {}
        try:
            self._outputs = layers.layer_outputs(model, spec[0])
        except ValueError as error:
            raise ArgumentError(f"The data does not fit the model: {error}") from error

    @property
    def gradients(self) -> int:
        """Bytes of one gradient for each trainable weight."""
        return self._held.gradients

    def crude(self) -> Estimate:
        """A bound from shapes alone."""
        step = Estimate(peak.crude_step_bytes(self._held, self._outputs), 0, "layer shapes")
        return self._on_top_of_base(step)

    def peak(self, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate:
        """The peak by analysis; where the step cannot be analysed by a trial; where that cannot be made by shapes."""
        analysed = self._analysed(split, levers)
        if analysed is not None:
            _, correction = self._correction(levers)
            if correction is not None:
                analysed = correction.applied(analysed)
            freed = allowed.saved_bytes(self._model, levers)
            return self._on_top_of_base(dataclasses.replace(analysed, bytes=analysed.bytes - freed))
        return self._on_top_of_base(self._tried(split, levers) or self._shape_step(split))

    @functools.cached_property
    def compiling(self) -> int:
        """What compiling the plain step takes of the host while it lasts, about; 0 where nothing is known of it."""
        return self._backend.compiling_bytes(self._model, self._spec)

    def prepare(self, split: Split | None, levers: Levers) -> None:
        """Compiles the step that was chosen, where the backend compiles one and has forgotten it since."""
        text = f"compiling {self._step_text(split, levers)}"
        with shown(text, quiet=self._quiet), pulled(self._model, levers, self._backend):
            self._backend.prepare(self._model, self._spec, split)

    def is_weak(self, split: Split | None, levers: Levers = NO_LEVERS) -> bool:
        """Whether the step's analysis says so little that a trial is worth its time."""
        analysed = self._analysed(split, levers)
        if analysed is None or self._correction(levers)[1] is not None:
            return False
        return analysed.cautious(self.caution).margin > WEAK_MARGIN * analysed.bytes

    def confirmed(self, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate | None:
        """The peak by a trial, from which later analyses of the model are corrected; None where no trial can be made."""
        tried, analysed = self._tried(split, levers), self._analysed(split, levers)
        if tried is None:
            return None
        if analysed is not None:
            name, correction = self._correction(levers)[0], cache.Correction(analysed.bytes, tried.bytes)
            self._corrections[levers.xla_off] = name, correction
            if tried.source == trial.MEASURED:
                cache.store_correction(name, correction)
        return self._on_top_of_base(tried)

    def _correction(self, levers: Levers) -> tuple[str | None, cache.Correction | None]:
        """What trials taught about the model with XLA, or without: its name in the cache, and itself where there is one."""
        if levers.xla_off not in self._corrections:
            with pulled(self._model, Levers(xla_off=levers.xla_off), self._backend):
                name = cache.correction_key(self._model, self._backend)
            self._corrections[levers.xla_off] = name, cache.load_correction(name)
        return self._corrections[levers.xla_off]

    def _analysed(self, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate | None:
        if (split, levers) not in self._analyses:
            text = f"analysing {self._step_text(split, levers)}"
            with shown(text, quiet=self._quiet), pulled(self._model, levers, self._backend):
                # Elsewhere it changes nothing but the name that the answer is kept under.
                rest = self._rest if self._backend.keeps_freed(self._model) else 0
                step = peak.step_bytes(self._model, self._spec, split, backend=self._backend, rest=rest)
            self._analyses[split, levers] = step
            if step is not None and step.otherwise is not None:
                other = dataclasses.replace(levers, own_pages=not levers.own_pages)
                self._analyses.setdefault((split, other), dataclasses.replace(step.otherwise, compiling=step.compiling))
        return self._analyses[split, levers]

    def _tried(self, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate | None:
        with pulled(self._model, levers, self._backend):
            name = cache.key(self._model, self._spec, split, "tried", self._backend)
        known = cache.load(name)
        if known is not None:
            return known
        with shown(f"trying {self._step_text(split, levers)} in a child process", quiet=self._quiet):
            tried = trial.step_bytes(self._model, self._spec, split, backend=self._backend, levers=levers)
        if tried is not None and tried.source == trial.MEASURED:
            cache.store(name, tried)
        return tried

    def _step_text(self, split: Split | None, levers: Levers) -> str:
        batch = keras_seam.flatten(self._spec)[0].shape[0]
        parts = "" if split is None else f" in micro-batches of {split.micro_batch_size}"
        return f"the step at batch {batch}{parts}" + (f", {levers.text}" if levers else "")

    def other_peak(self, kind: StepKind, batch_size: int | None = None) -> Estimate | None:
        """The peak of a validation or prediction step, or None where it cannot be analysed.

        Args:
            kind: "test" or "predict".
            batch_size: Samples of the step; those of the training batch where left out.
        """
        spec = self._spec if batch_size is None else _resized(self._spec, batch_size)
        with shown(f"analysing the {kind} step", quiet=self._quiet):
            step = peak.step_bytes(self._model, spec, None, backend=self._backend, kind=kind)
        return None if step is None else self._on_top_of_base(step)

    def profile(self, whole: Estimate) -> Profile:
        return peak.profile(self._model, self._spec, whole, backend=self._backend, outputs=self._outputs)

    def planned(self, plain: Profile, plan: Plan, kept: Mapping[str, float]) -> Profile:
        """The profile of the step as it is planned: at the size of its parts, with what its levers leave.

        Args:
            plain: That of the plain step.
            plan: With a predicted peak.
            kept: Of layers by their paths, what is there at the peak, relative to the plain step; inner layers follow theirs.
        """
        batch_size = plan.micro_batch_size or plain.batch_size
        outputs, saved = self._outputs, allowed.saved_bytes(self._model, plan.levers)
        if plan.levers.precision is not None:
            with pulled(self._model, Levers(precision=plan.levers.precision), self._backend):
                outputs = layers.layer_outputs(self._model, self._spec[0])
        base, share = plain.base, batch_size / plain.batch_size
        device = None if base.device_bytes is None else base.device_bytes - saved
        held = [dataclasses.replace(one, bytes=int(one.bytes * share * _kept(one.name, kept))) for one in outputs]
        return dataclasses.replace(
            plain,
            batch_size=batch_size,
            optimizer_state=plain.optimizer_state - saved,
            layers=tuple(sorted(held, key=lambda one: -one.bytes)),
            base=dataclasses.replace(
                base, host_bytes=base.host_bytes - (saved if device is None else 0), device_bytes=device
            ),
            peak=plan.peak or plain.peak,
        )

    def idle(self) -> int:
        """What the process will hold between steps, margin included."""
        return self._on_top_of_base(_NOTHING).upper

    def forward_batch_size(self, kind: StepKind, batch_size: int, ceiling: int) -> tuple[int, Estimate | None]:
        """The largest batch of a step without gradients that fits, up to a size; 0 where not even one sample does.

        Where shapes alone say that it is far from the ceiling, the step is not analysed.

        Args:
            kind: "test" or "predict".
            batch_size: The largest batch that is wanted.
            ceiling: Bytes that the peak may reach, margin included.

        Returns:
            The size, and the peak there (of the smallest batch where nothing fits); None where it was not analysed.
        """
        share = batch_size / keras_seam.flatten(self._spec)[0].shape[0]
        forward = int(share * (_FORWARD_FACTOR * sum(layer.bytes for layer in self._outputs[:2]) + self._held.inputs))
        idle = self.idle()
        if idle + 2 * forward <= ceiling:
            return batch_size, None
        whole = self.other_peak(kind, batch_size)
        if whole is None:
            room = max(0, ceiling - idle)
            return (batch_size if forward <= room else max(1, int(batch_size * room / forward))), None
        if whole.upper <= ceiling:
            return batch_size, whole
        size, peak = largest_micro_batch(
            batch_size, lambda size: self.other_peak(kind, size) or whole, ceiling, whole=whole
        )
        return size or 0, peak

    def _shape_step(self, split: Split | None) -> Estimate:
        """A step from shapes: what the crude bound says of a part, with half of it as the margin."""
        share = 1.0 if split is None else split.micro_batch_size / keras_seam.flatten(self._spec)[0].shape[0]
        held, outputs = self._held, self._outputs
        scaled = tuple(dataclasses.replace(layer, bytes=int(layer.bytes * share)) for layer in outputs)
        num_bytes = peak.crude_step_bytes(dataclasses.replace(held, inputs=int(held.inputs * share)), scaled)
        return Estimate(num_bytes // 2, num_bytes - num_bytes // 2, "layer shapes")

    def _on_top_of_base(self, step: Estimate) -> Estimate:
        waiting = self._queued * self._held.inputs + self._reading
        found = peak.on_top_of_now(step, waiting=waiting, backend=self._backend).cautious(self.caution)
        return dataclasses.replace(found, bytes=found.bytes - min(self._left, step.bytes - step.fixed))

    @contextlib.contextmanager
    def testing(self) -> Iterator[None]:
        """Around a test of the model on a tiny batch: from what it leaves with the process steps take their tensors first.

        Measured on TensorFlow, five models in 4 and 8 parts whose tests left 27 to 206 MiB: the first step took 15 MiB less to
        43 MiB more than was predicted before the margin.
        """
        before = self._on_top_of_base(_NOTHING).bytes
        try:
            yield
        finally:
            if self._backend.keeps_freed(self._model):
                self._backend.release()
                left = self._on_top_of_base(_NOTHING).bytes - before
                self._left += max(0, left)
