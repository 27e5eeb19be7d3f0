"""How a step is arranged: the settings of the levers, part of ``records``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


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
        optimizer_state: How the optimizer's moments are kept: "adam8bit"; None for as they are. Not exact.
    """

    remat: Remat | None = None
    optimizer_state: str | None = None

    def __bool__(self) -> bool:
        return self != Levers()

    @property
    def text(self) -> str:
        """What is pulled, in words; empty where nothing is."""
        pulled = []
        if self.remat is not None:
            number = len(self.remat.segments)
            pulled.append(f"{number} segment{'s' if number > 1 else ''} recomputed in the backward pass")
        if self.optimizer_state is not None:
            pulled.append("optimizer state in 8 bits")
        return ", ".join(pulled)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Levers:
        """The setting that ``dataclasses.asdict`` took apart."""
        remat = fields["remat"]
        return cls(**{**fields, "remat": None if remat is None else Remat.from_fields(remat)})


NO_LEVERS = Levers()


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What levers add to the time of a step, relative to the plain step; measured (``benchmarks/planning.py``).

    Attributes:
        part: Each part of a batch after the first.
        recomputation: Computing the whole forward pass once more.
    """

    part: float
    recomputation: float
