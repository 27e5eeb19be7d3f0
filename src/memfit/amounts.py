"""Bytes, as they are read, counted or predicted: part of ``records``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from memfit import units


@dataclasses.dataclass(frozen=True)
class Reading:
    """What this process holds at one moment.

    Attributes:
        host_bytes: Anonymous (not reclaimable) resident bytes of the process.
        device_bytes: Bytes taken on the accelerator, or None where there is none.
        source: Where the numbers were read.
    """

    host_bytes: int
    device_bytes: int | None
    source: str


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """An accelerator's memory as the framework sees it.

    Attributes:
        kind: "gpu" or "tpu".
        total_bytes: What the framework may ever allocate there.
        used_bytes: What live tensors of this process take there.
        peak_bytes: The highest ``used_bytes`` so far, as the framework's allocator counted it.
    """

    kind: str
    total_bytes: int
    used_bytes: int
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape, batch axis first, and dtype name of one array of a batch."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a step is at its peak.

    Attributes:
        phase: "forward", "backward" or "update".
        layer: The path of the Keras layer, or None where the operation belongs to none.
        operation: The operation as the framework names it.
    """

    phase: str
    layer: str | None
    operation: str

    def __str__(self) -> str:
        where = "" if self.layer is None else f" of {self.layer}"
        return f"{self.phase}{where} ({self.operation})"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A predicted number of bytes.

    Attributes:
        bytes: The prediction.
        margin: What the prediction may be short of; ``upper`` holds both.
        source: The method: "graph liveness", "XLA buffer assignment", "compiled", "fake tensors", "probe", "layer shapes",
            "scripted".
        moment: When the peak is, or None where the method does not tell.
        workspace: Of ``bytes``, what no tensor of the program holds: kernels' own memory and gaps of the allocator.
        compiling: Host bytes that tracing and compiling the step were seen to take while they lasted; not in ``bytes``.
        fixed: Of ``bytes``, what a step of the model takes at any batch size and with any lever, at the least: its graph.
        spare: Of ``upper``, what can be left out at first where a step that runs out of memory is undone and tried smaller: of
            ``margin``, then of ``bytes``.
        left_out: What has been left out; a step may take it where the budget has it.
        otherwise: What the same step takes with the other setting of ``own_pages``, where the analysis gives both.
    """

    bytes: int
    margin: int
    source: str
    moment: Moment | None = None
    workspace: int = 0
    compiling: int = 0
    fixed: int = 0
    spare: int = 0
    left_out: int = 0
    otherwise: Estimate | None = None

    @property
    def upper(self) -> int:
        return self.bytes + self.margin

    @property
    def widest(self) -> int:
        """``upper`` with what has been left out of it: what the step is predicted to stay below."""
        return self.upper + self.left_out

    def most_under(self, bound: int) -> int:
        """``widest``, or the bound where that is less: what has been left out is only taken where the bound has it."""
        return min(self.widest, bound) if self.left_out else self.upper

    def cautious(self, share: float) -> Estimate:
        """The estimate with a share of what can be left out of it; all of it at 1."""
        left_out = int((1.0 - share) * self.spare)
        of_margin = min(left_out, self.margin)
        return dataclasses.replace(
            self,
            bytes=self.bytes - (left_out - of_margin),
            margin=self.margin - of_margin,
            spare=self.spare - left_out,
            left_out=self.left_out + left_out,
        )

    def __str__(self) -> str:
        return f"{units.text(self.bytes)} + {units.text(self.margin)} margin ({self.source})"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Consumer:
    """One named holder of memory: a layer's activations, the optimizer state, the inputs.

    Attributes:
        name: The layer's path or the category.
        kind: The layer's class, or "weights", "gradients", "optimizer state", "inputs".
        bytes: What it holds, at the profile's batch size.
    """

    name: str
    kind: str
    bytes: int


def estimate_from_fields(fields: Mapping[str, Any]) -> Estimate:
    """The estimate that ``dataclasses.asdict`` took apart, or ``to_json`` wrote."""
    moment, otherwise = fields.get("moment"), fields.get("otherwise")
    return Estimate(
        **{
            **fields,
            "moment": None if moment is None else Moment(**moment),
            "otherwise": None if otherwise is None else estimate_from_fields(otherwise),
        }
    )
