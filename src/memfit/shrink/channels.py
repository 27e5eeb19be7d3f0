"""Which channels of a model belong together: each channel of each layer is an atom, and atoms that must go together are tied.

A channel that an addition adds to another cannot be removed without the other; one that a Flatten spreads over many
features takes all of them along. Ties are transitive, so what remains is a set of classes, each kept or removed as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

Atoms = np.ndarray
"""The atom of each position along an axis, as integers; the same atom may stand at many positions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """What a tensor's channels are.

    Attributes:
        atoms: One for each position along ``axis``; None where the width must stay as it is.
        shape: Of the tensor, batch axis first, None where open.
        axis: Of the channels, counted from the end.
    """

    atoms: Atoms | None
    shape: tuple[int | None, ...]
    axis: int = -1

    @property
    def width(self) -> int | None:
        """Positions along the channel axis."""
        return self.shape[self.axis] if len(self.shape) >= -self.axis else None


class Ties:
    """Atoms, the ties between them, and those that must stay."""

    def __init__(self) -> None:
        self._count = 0
        self._tied: list[tuple[Atoms, Atoms]] = []
        self._fixed: list[Atoms] = []

    def fresh(self, count: int) -> Atoms:
        """New atoms, tied to nothing."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def tie(self, one: Atoms | None, other: Atoms | None) -> Atoms | None:
        """Ties two axes of the same length position by position; with None, which must stay, both must stay."""
        if one is None or other is None or len(one) != len(other):
            self.fix(one)
            self.fix(other)
            return None
        if one is not other:
            self._tied.append((one, other))
        return one

    def fix(self, atoms: Atoms | None) -> None:
        """These must stay."""
        if atoms is not None:
            self._fixed.append(atoms)

    def classes(self) -> Classes:
        """The classes that the ties so far make."""
        label = np.arange(self._count)
        ones, others = (
            np.concatenate([pair[side] for pair in self._tied]) if self._tied else np.empty(0, int) for side in (0, 1)
        )
        while True:
            low = np.minimum(label[ones], label[others])
            before = label.copy()
            np.minimum.at(label, label[ones], low)
            np.minimum.at(label, label[others], low)
            label = label[label]
            if np.array_equal(label, before):
                break
        fixed = np.zeros(self._count, bool)
        for atoms in self._fixed:
            fixed[label[atoms]] = True
        return Classes(label, fixed)


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """The classes of tied atoms.

    Attributes:
        label: The class of each atom, named by its first.
        fixed: For each class (by its name) whether it must stay.
    """

    label: np.ndarray
    fixed: np.ndarray

    def of(self, atoms: Atoms) -> np.ndarray:
        """The class at each position."""
        return self.label[atoms]


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Which classes are kept.

    Attributes:
        classes: All of them.
        mask: For each class (by its name) whether it is kept.
    """

    classes: Classes
    mask: np.ndarray

    @classmethod
    def all_of(cls, classes: Classes) -> Kept:
        """Nothing removed."""
        return cls(classes, np.ones(len(classes.label), bool))

    def without(self, removed: Iterable[int]) -> Kept:
        """The same without some classes."""
        mask = self.mask.copy()
        mask[list(removed)] = False
        return Kept(self.classes, mask)

    def positions(self, atoms: Atoms) -> np.ndarray:
        """The positions of an axis that stay, in order."""
        return np.flatnonzero(self.mask[self.classes.of(atoms)])
