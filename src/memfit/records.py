"""READ FIRST: the frozen records that the stages hand to one another.

budget -> profile -> plan -> probe -> execute -> guard -> report: each stage takes records and returns records. Bytes are
``int``. A number says where it came from, a decision carries its reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memfit import units
from memfit.amounts import Consumer as Consumer
from memfit.amounts import DeviceMemory as DeviceMemory
from memfit.amounts import Estimate as Estimate
from memfit.amounts import Moment as Moment
from memfit.amounts import Reading as Reading
from memfit.amounts import TensorSpec as TensorSpec
from memfit.amounts import estimate_from_fields as estimate_from_fields
from memfit.arrangement import NO_LEVERS as NO_LEVERS
from memfit.arrangement import Levers as Levers
from memfit.arrangement import Remat as Remat
from memfit.arrangement import Segment as Segment
from memfit.arrangement import Split as Split
from memfit.arrangement import StepCosts as StepCosts
from memfit.errors import ArgumentError
from memfit.timeline import Timeline as Timeline
from memfit.writing import written


class Shown:
    """What notebooks ask a record for: a table where they can show one, and the text of ``print`` elsewhere."""

    def _repr_html_(self) -> str:
        # What renders it is built on these records, and is imported by then only.
        return str(importlib.import_module("memfit.reporting.rich_html").of(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def __init_subclass__(cls) -> None:
        # IPython takes the first class that has either this or a __repr__, which every dataclass has.
        cls._repr_pretty_ = Shown._repr_pretty_  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class Budget(Shown):
    """What training may take: a ceiling on the whole process, what it holds already included.

    Attributes:
        host_bytes: Ceiling on the anonymous resident bytes of this process.
        source: Where the host number came from, as a sentence.
        device_bytes: Ceiling on the bytes of the accelerator, or None where training lives in host memory.
        device_source: Where the device number came from.
    """

    host_bytes: int
    source: str
    device_bytes: int | None = None
    device_source: str | None = None

    @property
    def limiting_bytes(self) -> int:
        """Bytes of the memory that holds the training step, which is the device's, or the host's where there is no device."""
        return self.host_bytes if self.device_bytes is None else self.device_bytes

    def __str__(self) -> str:
        host = f"{units.text(self.host_bytes)} of host memory ({self.source})"
        if self.device_bytes is None:
            return host
        return f"{units.text(self.device_bytes)} of device memory ({self.device_source}) and {host}"


@dataclasses.dataclass(frozen=True)
class Profile(Shown):
    """What one training step of a model costs, by category and by layer.

    Attributes:
        backend: The Keras backend.
        device: "cpu", "gpu" or "tpu".
        batch_size: The batch that the figures hold for.
        weights: Bytes of all weights.
        gradients: Bytes of one gradient for each trainable weight.
        optimizer_state: Bytes of the optimizer's variables.
        inputs: Bytes of one batch of x, y and sample weights, as they are fed.
        layers: Output bytes of each layer at ``batch_size``, largest first.
        base: What the process held before training: framework, model and data.
        peak: The predicted peak of the process (CPU) or device while it trains at ``batch_size``, with its moment, the
            kernels' own memory and what compiling takes.
        validation_peak: The same for a validation step; None where that was not asked for or cannot be analysed.
        prediction_peak: The same for a step of ``predict``.
    """

    backend: str
    device: str
    batch_size: int
    weights: int
    gradients: int
    optimizer_state: int
    inputs: int
    layers: tuple[Consumer, ...]
    base: Reading
    peak: Estimate
    validation_peak: Estimate | None = None
    prediction_peak: Estimate | None = None

    @property
    def activations(self) -> int:
        """Bytes of all layer outputs of one forward pass."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """Every category and layer, largest first."""
        categories = (
            Consumer("weights", "weights", self.weights),
            Consumer("gradients", "gradients", self.gradients),
            Consumer("optimizer state", "optimizer state", self.optimizer_state),
            Consumer("inputs", "inputs", self.inputs),
        )
        return tuple(sorted(categories + self.layers, key=lambda consumer: -consumer.bytes))

    def __str__(self) -> str:
        lines = [
            f"One training step at batch size {self.batch_size} on {self.backend} ({self.device}): peak {self.peak}"
        ]
        if self.peak.moment is not None:
            lines.append(f"  at its peak: {self.peak.moment}")
        for name, peak in (("validation", self.validation_peak), ("prediction", self.prediction_peak)):
            if peak is not None:
                lines.append(f"  one {name} step: peak {peak}")
        held = self.base.host_bytes if self.base.device_bytes is None else self.base.device_bytes
        categories = {
            "held before training": held,
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.optimizer_state,
            "inputs": self.inputs,
            "activations": self.activations,
            "workspace of kernels": self.peak.workspace,
            "while compiling": self.peak.compiling,
        }
        lines += [f"  {units.text(num_bytes):>9}  {name}" for name, num_bytes in categories.items() if num_bytes]
        lines.append("Outputs of its layers, largest first:")
        lines += [f"  {units.text(c.bytes):>9}  {c.name} ({c.kind})" for c in self.layers[:8] if c.bytes]
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Profile:
        """The profile that ``dataclasses.asdict`` took apart."""
        peaks = {name: fields[name] for name in ("peak", "validation_peak", "prediction_peak")}
        return cls(
            **{
                **fields,
                "layers": tuple(Consumer(**layer) for layer in fields["layers"]),
                "base": Reading(**fields["base"]),
                **{name: None if peak is None else estimate_from_fields(peak) for name, peak in peaks.items()},
            }
        )


_AS_KERAS = "memfit: trains as model.fit does"


@dataclasses.dataclass(frozen=True)
class Plan(Shown):
    """The arrangement to train with.

    Attributes:
        batch_size: Samples of one optimizer update: the user's batch. None where the data set alone knows.
        micro_batch_size: Samples that are in the forward and backward pass together; None where the batch is not split.
        validation_batch_size: Samples of a validation step; None to leave it to Keras.
        streamed: Whether arrays are fed by index instead of being turned into one tensor.
        exact: Whether the result is that of plain ``model.fit`` to float rounding.
        peak: The predicted peak with this plan, or None where it was not predicted.
        budget: The budget it was made for.
        reasons: Why, in sentences.
        levers: What else is pulled.
        relative_time: Seconds that a step is expected to take, relative to the plain step's.
    """

    batch_size: int | None
    micro_batch_size: int | None
    budget: Budget
    peak: Estimate | None = None
    validation_batch_size: int | None = None
    streamed: bool = False
    exact: bool = True
    reasons: tuple[str, ...] = ()
    levers: Levers = NO_LEVERS
    relative_time: float = 1.0

    @property
    def num_parts(self) -> int:
        """Parts that a full batch is trained in."""
        if self.micro_batch_size is None or self.batch_size is None:
            return 1
        return -(-self.batch_size // self.micro_batch_size)

    def because(self, *reasons: str) -> Plan:
        """The same plan with further reasons."""
        return dataclasses.replace(self, reasons=(*self.reasons, *reasons))

    @property
    def summary(self) -> str:
        """The plan in one line."""
        batch = "each batch" if self.batch_size is None else f"each batch of {self.batch_size}"
        if self.micro_batch_size is None:
            fed = ", arrays fed by index" if self.streamed else ""
            return f"memfit: {batch} goes through whole, {self.levers.text}{fed}" if self.levers else _AS_KERAS + fed
        parts = "" if self.batch_size is None else f" ({self.num_parts} parts)"
        also = f", {self.levers.text}" if self.levers else ""
        return (
            f"memfit: {batch} goes through in micro-batches of {self.micro_batch_size}{parts}{also}, one update a batch"
        )

    def __str__(self) -> str:
        lines = [self.summary]
        if self.peak is not None:
            lines.append(f"  predicted peak: {self.peak}")
        lines.append(f"  budget: {self.budget}")
        if self.relative_time != 1.0:
            lines.append(f"  expected time of a step: {self.relative_time:.2f} times the plain step's")
        lines += [f"  - {reason}" for reason in self.reasons]
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, document: str) -> Plan:
        """The plan that ``to_json`` wrote.

        Raises:
            ValueError: The document is not one that ``to_json`` wrote.
        """
        try:
            fields: Mapping[str, Any] = json.loads(document)
            peak = fields["peak"]
            return cls(
                **{
                    **fields,
                    "budget": Budget(**fields["budget"]),
                    "peak": None if peak is None else estimate_from_fields(peak),
                    "reasons": tuple(fields["reasons"]),
                    "levers": Levers.from_fields(fields["levers"]),
                }
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"Not a plan that Plan.to_json() wrote ({error}). Received: {document[:200]!r}") from error


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened during a run.

    Attributes:
        seconds: Since the call of ``fit``.
        kind: "budget", "analysis", "separability", "plan", "attempt", "out of memory", "retry", "pressure", "leak",
            "device", "snapshot", "mark", "note".
        message: The sentence that a person reads.
    """

    seconds: float
    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class RunReport(Shown):
    """What happened in one ``memfit.fit``: attached to Keras' History as ``history.memfit``.

    Attributes:
        plan: The plan that the run ended with.
        profile: What was predicted of the plain step, or None where nothing had to be.
        events: In order of time.
        peak: The highest reading during the run.
        seconds: Wall time of the whole call, and ``planning_seconds`` of it before the first step.
        planning_seconds: Time spent before training started.
        timeline: What was held while it trained; None where that is not known.
        planned: What was predicted of the step as it was planned in the end: at the size of its parts, with what recomputation
            leaves at the peak; None where that is not known.
    """

    plan: Plan
    profile: Profile | None
    events: tuple[Event, ...]
    peak: Reading
    seconds: float
    planning_seconds: float
    timeline: Timeline | None = None
    planned: Profile | None = None

    def __str__(self) -> str:
        lines = [
            str(self.plan),
            f"  measured peak: {units.text(self.peak.host_bytes)} of host memory ({self.peak.source})",
        ]
        if self.peak.device_bytes is not None:
            lines.append(f"  measured peak: {units.text(self.peak.device_bytes)} of device memory")
        lines += [f"  {event.seconds:7.1f} s  {event.kind}: {event.message}" for event in self.events]
        return "\n".join(lines)

    def to_json(self) -> str:
        """One JSON object: what ``memfit report`` reads."""
        fields = {**dataclasses.asdict(dataclasses.replace(self, timeline=None)), "format": REPORT_FORMAT}
        return json.dumps({**fields, "timeline": None if self.timeline is None else self.timeline.as_fields()})

    @classmethod
    def from_json(cls, document: str) -> RunReport:
        """The report that ``to_json`` wrote.

        Raises:
            ArgumentError: The document is not one that ``to_json`` wrote, was cut short, or is of another version.
        """
        try:
            fields: Mapping[str, Any] = json.loads(document)
            if fields["format"] != REPORT_FORMAT:
                raise ArgumentError(
                    f"The report is of another version of memfit. Received: format={fields['format']!r}, where this version "
                    f"reads {REPORT_FORMAT!r}. Show it with the version that wrote it."
                )
            profile, timeline, planned = fields["profile"], fields["timeline"], fields["planned"]
            return cls(
                plan=Plan.from_json(json.dumps(fields["plan"])),
                profile=None if profile is None else Profile.from_fields(profile),
                events=tuple(Event(**event) for event in fields["events"]),
                peak=Reading(**fields["peak"]),
                seconds=float(fields["seconds"]),
                planning_seconds=float(fields["planning_seconds"]),
                timeline=None if timeline is None else Timeline.from_fields(timeline),
                planned=None if planned is None else Profile.from_fields(planned),
            )
        except ArgumentError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"Not a whole report that RunReport.to_json() wrote ({str(error)[:200]}). Received: {document[:80]!r}. "
                "Write it again: a file that was cut short cannot be shown."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes ``to_json`` to a file, whole or not at all: ``memfit report FILE`` shows it."""
        return written(path, self.to_json())

    def report(self, path: str | os.PathLike[str] = "memfit-report.html") -> Path:
        """Writes one HTML page that needs no network and no scripts; gives its path."""
        return written(path, importlib.import_module("memfit.reporting.page").of_run(self))


REPORT_FORMAT = "memfit run report 2"
