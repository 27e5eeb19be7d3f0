"""What a framework's own input pipeline holds in memory, stage by stage, and how it may be changed."""

from __future__ import annotations

import dataclasses
from typing import Literal

ENDLESS = 2**62
"""The number of elements of a stage that never ends."""

Kind = Literal["cache", "shuffle", "prefetch", "batch", "map", "repeat", "other"]
ChangeKind = Literal["file", "drop", "size", "move"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        kind: What it does.
        text: How the user wrote it, about: "shuffle(10000)".
        element_bytes: Bytes of one element that it gives, or None where that cannot be known.
        capacity: Elements that it holds at most; ``ENDLESS`` for a cache of a pipeline that never ends; None: unknown.
        changeable: Whether this stage and all after it can be built again, so that it can be changed.
        one_to_one: Whether it makes exactly one element of each, in order, so that a shuffle may come before it instead.
        autotuned: Whether the framework chooses ``capacity`` while it runs.
    """

    kind: Kind
    text: str
    element_bytes: int | None
    capacity: int | None
    changeable: bool
    one_to_one: bool = False
    autotuned: bool = False

    @property
    def held_bytes(self) -> int | None:
        """Bytes that it holds at most, or None where that cannot be known."""
        if self.capacity == 0:
            return 0
        if self.element_bytes is None or self.capacity is None:
            return None
        return self.element_bytes * self.capacity


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a pipeline.

    Attributes:
        index: Which stage, from the source.
        kind: "file": the cache goes to the file prefix ``target``; "drop": the stage is left out; "size": its buffer or its
            number of parallel calls becomes ``size``; "move": it comes right before stage ``size``.
        size: See ``kind``.
        target: See ``kind``.
    """

    index: int
    kind: ChangeKind
    size: int = 0
    target: str = ""
