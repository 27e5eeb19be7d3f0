"""How a step is arranged: the settings of the levers, part of ``records``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_PASSES = 3
"""A training step computes about three forward passes: one forward, two backward."""


@dataclasses.dataclass(frozen=True)
class Split:
    """How a batch is split into parts inside one train step.

    Attributes:
        micro_batch_size: Samples of a part; the last part of a batch may be smaller.
        call_losses: Whether a loss from ``add_loss`` or an activity regularizer is a "mean" over the samples, so that a
            part counts by its share of the batch, or a "sum", so that parts add up. Found by the separability test.
        scalar_losses: The same for a compiled loss whose function returns one number instead of one per sample.
    """

    micro_batch_size: int
    call_losses: str = "mean"
    scalar_losses: str = "mean"


@dataclasses.dataclass(frozen=True)
class Segment:
    """Operations ``start`` up to, not including, ``stop`` of a model's sequence of operations, recomputed together."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Remat:
    """Which parts of a model forget their activations in the forward pass and compute them again in the backward pass.

    Positions are those of ``levers.remat.chain``: the same for the same model in every process. What no segment names is
    kept as ever.

    Attributes:
        segments: In order, apart from one another.

    Example:
        >>> import json
        >>> remat = Remat((Segment(0, 4), Segment(4, 9)))
        >>> Remat.from_fields(json.loads(json.dumps(dataclasses.asdict(remat)))) == remat
        True
    """

    segments: tuple[Segment, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Remat:
        """The arrangement that ``dataclasses.asdict`` took apart."""
        return cls(tuple(Segment(**segment) for segment in fields["segments"]))


@dataclasses.dataclass(frozen=True)
class Levers:
    """One setting of the levers other than micro-batching; the default pulls none.

    Attributes:
        remat: What is recomputed in the backward pass; None for nothing. Exact.
        precision: "mixed_bfloat16" or "mixed_float16": what most layers compute in, by Keras' name; None for what the user
            set. Not exact.
        optimizer_state: How the optimizer's moments are kept: "adam8bit"; None for as they are. Not exact.
        own_pages: On a CPU, whether large tensors get pages of their own, which go back to the system when they are freed,
            and are faulted in anew each time: fewer bytes, more time. Exact.
        xla_off: Whether the steps of a model that is compiled with XLA are made without it. Exact to rounding.
        grouped_update: Whether an optimizer that updates all weights at once, with temporary arrays of their size, updates a
            group of them after the other. Exact.
    """

    remat: Remat | None = None
    precision: str | None = None
    optimizer_state: str | None = None
    own_pages: bool = False
    xla_off: bool = False
    grouped_update: bool = False

    def __bool__(self) -> bool:
        return self != Levers()

    @property
    def exact(self) -> bool:
        """Whether the result stays that of the plain step."""
        return self.precision is None and self.optimizer_state is None

    @property
    def computing(self) -> Levers:
        """Those that change what is computed, or in which order: to be compared with the plain step on the user's model."""
        return Levers(self.remat, self.precision, self.optimizer_state)

    @property
    def text(self) -> str:
        """What is pulled, in words; empty where nothing is."""
        words = []
        if self.remat is not None:
            number = len(self.remat.segments)
            words.append(f"{number} segment{'s' if number > 1 else ''} recomputed in the backward pass")
        if self.precision is not None:
            words.append(f"computed in {self.precision.removeprefix('mixed_')} where that is safe")
        if self.optimizer_state is not None:
            words.append("optimizer state in 8 bits")
        if self.own_pages:
            words.append("large tensors in pages of their own")
        if self.xla_off:
            words.append("the step compiled without XLA")
        if self.grouped_update:
            words.append("weights updated in groups")
        return ", ".join(words)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Levers:
        """The setting that ``dataclasses.asdict`` took apart."""
        remat = fields["remat"]
        return cls(**{**fields, "remat": None if remat is None else Remat.from_fields(remat)})


NO_LEVERS = Levers()


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What levers add to the time of a step on a framework and device; fitted to rows of ``benchmarks/planning.py``.

    Attributes:
        recomputation: Computing the whole forward pass once more, relative to the plain step less its page faults.
        part_seconds: Starting a part of a batch, whatever the model.
        layer_seconds: The same for each layer of the model: its operations are issued once more.
        reissuing: Issuing a layer for its recomputation, relative to ``layer_seconds``.
        efficiency: Of the rate at which the device multiplies matrices, what a step reaches.
        own_pages: What tensors in pages of their own add, relative to the plain step; None where that is no choice.
        without_xla: What a step takes more without XLA, relative to the plain step of a model that is compiled with it; None
            where that is no choice.
        update_group_bytes: Of the weights of a group, where optimizers update all at once; None where none does.
        fresh_pages: Whether each step gets the memory for its activations anew from the system, which faults in every page.

    Example:
        >>> costs = StepCosts(recomputation=0.4, part_seconds=1e-3, layer_seconds=1e-4, efficiency=0.5)
        >>> round(costs.part(3.3e9, num_layers=10, rate=1e11), 3)  # a step of 0.2 s
        0.01
    """

    recomputation: float
    part_seconds: float
    layer_seconds: float
    efficiency: float
    own_pages: float | None = None
    without_xla: float | None = None
    update_group_bytes: int | None = None
    fresh_pages: bool = False
    reissuing: float = 1.0

    def recomputed(self, again: float, *, kept: float = 1.0, faulting: float = 0.0) -> float:
        """The time of a step that recomputes, relative to the plain step.

        Args:
            again: What is computed once more, relative to the forward pass.
            kept: The most bytes of activations at one time, relative to the plain step's.
            faulting: The share of the plain step in which the pages of its activations are faulted in, where it must be.
        """
        return 1.0 + self.recomputation * again * (1.0 - faulting) - faulting * (1.0 - kept)

    def faulting(self, forward: float, *, activations: int, rate: float, page_seconds: float) -> float:
        """The share of the plain step in which the pages of its activations are faulted in.

        Args:
            forward: As for ``part``.
            activations: Bytes.
            rate: As for ``part``.
            page_seconds: Seconds to fault in a byte.
        """
        pages = activations * page_seconds
        return pages / (pages + _PASSES * forward / (self.efficiency * rate))

    def part(self, forward: float, *, num_layers: int, rate: float) -> float:
        """What each part after the first adds to the time of a step, relative to the plain step.

        Args:
            forward: Floating-point operations of a forward pass over the whole batch.
            num_layers: Layers that are issued one after the other, a recurrent one once for each of its time steps.
            rate: Floating-point operations a second at which the device multiplies matrices.
        """
        issuing = self.part_seconds + self.layer_seconds * num_layers
        return issuing / self._step(forward, num_layers, rate)

    def part_again(self, forward: float, *, num_layers: int, layers_again: int, rate: float) -> float:
        """What recomputing adds to that.

        Args:
            forward: As for ``part``.
            num_layers: As for ``part``.
            layers_again: Of those, the ones that are recomputed.
            rate: As for ``part``.
        """
        return self.reissuing * self.layer_seconds * layers_again / self._step(forward, num_layers, rate)

    def _step(self, forward: float, num_layers: int, rate: float) -> float:
        """Seconds of the plain step."""
        issuing = self.part_seconds + self.layer_seconds * num_layers
        return issuing + _PASSES * forward / (self.efficiency * rate)
