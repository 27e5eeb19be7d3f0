"""What was held over time: samples with the place in training where they were taken, part of ``records``."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sample:
    """The most that was held in one stretch of time.

    Attributes:
        seconds: When the stretch began, since the clock's start.
        phase: "start", "train", "validation", "between", "evaluate" or "predict".
        epoch: From 0; None before the first.
        batch: From 0, of its epoch; None outside of batches.
        host_bytes: Of this process.
        children_bytes: Of the processes below it; None where that was not read.
        group_bytes: Charged to the control group, pages of files left out; None where there is none.
        device_bytes: On the accelerator; None where there is none.
    """

    seconds: float
    phase: str
    epoch: int | None
    batch: int | None
    host_bytes: int
    children_bytes: int | None = None
    group_bytes: int | None = None
    device_bytes: int | None = None

    def joined(self, later: Sample) -> Sample:
        """One sample for both: each number at its highest, the place where the host's was."""
        place = self if self.host_bytes >= later.host_bytes else later
        return Sample(
            self.seconds,
            place.phase,
            place.epoch,
            place.batch,
            place.host_bytes,
            _most(self.children_bytes, later.children_bytes),
            _most(self.group_bytes, later.group_bytes),
            _most(self.device_bytes, later.device_bytes),
        )


TIMELINE_FORMAT = "memfit timeline 1"
"""Marks the JSON of a ``MemoryMonitor``."""

FIELDS = tuple(field.name for field in dataclasses.fields(Sample))


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Samples in order of time.

    Attributes:
        samples: The later ones begin where the earlier ones end.
        cost: Of one processor's time, what taking them took: 0.002 is 0.2 %.

    Example:
        >>> timeline = Timeline((Sample(0.0, "train", 0, 3, 2**20),), cost=0.001)
        >>> print(timeline.to_csv().splitlines()[1])
        0.0,train,0,3,1048576,,,
        >>> Timeline.from_fields(timeline.as_fields()) == timeline
        True
    """

    samples: tuple[Sample, ...] = ()
    cost: float = 0.0

    def to_csv(self) -> str:
        """A line of names, a line a sample; what was not read is empty."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(dataclasses.astuple(sample) for sample in self.samples)
        return file.getvalue()

    def as_fields(self) -> dict[str, Any]:
        """For JSON: a column of each attribute."""
        columns = {name: [getattr(sample, name) for sample in self.samples] for name in FIELDS}
        return {"cost": self.cost, "samples": columns}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Timeline:
        """What ``as_fields`` took apart.

        Raises:
            ValueError: The columns are not equally long.
            KeyError: One is missing.
        """
        columns = [fields["samples"][name] for name in FIELDS]
        return cls(tuple(Sample(*row) for row in zip(*columns, strict=True)), fields["cost"])


def _most(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
