"""Which channels to keep: dimensions of alike channels, how much each channel matters, and how many stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from memfit.errors import ArgumentError
from memfit.shrink.anatomy import Anatomy
from memfit.shrink.channels import Kept

IMPORTANCE = ("l1", "l2", "gamma")


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """Classes of channels that appear at the same places of the model: one width that can be chosen.

    Attributes:
        members: The classes by name, in the order of their channels.
        cells: For each class the blocks that it lies in, of layers that work in groups; each cell keeps its share.
        makers: The layers that make these channels, in the order of the graph.
    """

    members: np.ndarray
    cells: tuple[tuple[int, ...], ...]
    makers: tuple[str, ...]


def dimensions(found: Anatomy) -> list[Dimension]:
    """The widths that can be chosen, in the order of the graph."""
    places: dict[int, list[tuple[Any, ...]]] = {}
    makers: dict[int, list[str]] = {}
    cells: dict[int, list[int]] = {}
    for part in found.parts.values():
        for key, atoms in _places(part):
            classes, counts = np.unique(found.classes.of(atoms), return_counts=True)
            for one, count in zip(classes.tolist(), counts.tolist(), strict=True):
                places.setdefault(one, []).append((key, count))
        for atoms in part.made:
            for one in np.unique(found.classes.of(atoms)).tolist():
                makers.setdefault(one, []).append(part.layer.name)
        for atoms, groups in part.divided:
            for block, members in enumerate(np.split(found.classes.of(atoms), groups)):
                for one in np.unique(members).tolist():
                    cells.setdefault(one, []).append(block)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for one, where in places.items():
        if not found.classes.fixed[one] and one in makers:
            alike.setdefault(tuple(where), []).append(one)
    return [
        Dimension(
            np.array(sorted(members)),
            tuple(tuple(cells.get(one, ())) for one in sorted(members)),
            tuple(dict.fromkeys(makers[members[0]])),
        )
        for members in alike.values()
        if len(members) > 1
    ]


def _places(part: Any) -> list[tuple[tuple[Any, ...], np.ndarray]]:
    cuts = [((weight, axis), atoms) for weight, cut in part.cuts.items() for axis, atoms in cut.axes.items()]
    sizes = [((id(part.layer), *path), atoms) for path, atoms in part.sizes]
    return [*cuts, *sizes]


def importance(found: Anatomy, measure: str) -> np.ndarray:
    """How much each class matters, by its name: norms of all that it touches, each relative to its neighbours'.

    Args:
        found: The model's anatomy.
        measure: "l1" or "l2" norms of kernels and scales; "gamma": the scales of normalization alone, where there are any.

    Raises:
        ArgumentError: The measure is none of these.
    """
    if measure not in IMPORTANCE:
        raise ArgumentError(f"`importance` is one of {', '.join(IMPORTANCE)}. Received: importance={measure!r}.")
    order = 1 if measure == "l1" else 2
    size = len(found.classes.label)
    total, scales = np.zeros(size), np.zeros(size)
    for part in found.parts.values():
        for weight in getattr(part.layer, "weights", ()):
            cut = part.cuts.get(id(weight))
            if cut is None or not cut.scores or not cut.axes:
                continue
            for atoms, strengths in cut.strengths(values(weight), order):
                score = _relative(found.classes.of(atoms), strengths, size) ** (1 / order)
                total += score
                if len(weight.shape) == 1:
                    scales += score
    return np.where(scales > 0, scales, total) if measure == "gamma" else total


def _relative(classes: np.ndarray, strengths: np.ndarray, size: int) -> np.ndarray:
    summed = np.bincount(classes, weights=strengths, minlength=size)
    return summed / max(float(summed[np.unique(classes)].mean()), 1e-30)


def values(weight: Any) -> np.ndarray:
    """A weight as a numpy array."""
    # A copy: on JAX a view would be of memory that the next step of the model gives away.
    return np.array(keras.ops.convert_to_numpy(weight.value))


def narrowed(
    found: Anatomy, share: Callable[[Dimension], float], scores: np.ndarray, *, kept: Kept | None = None
) -> Kept:
    """Keeps of each dimension the channels that matter most.

    Args:
        found: The model's anatomy.
        share: Of its channels that each dimension keeps; at least one stays.
        scores: By class.
        kept: What earlier cuts have kept.
    """
    kept = kept or Kept.all_of(found.classes)
    chosen = {id(one): one for one in dimensions(found)}
    while True:
        result = kept.without(
            np.concatenate([_weakest(one, share(one), scores) for one in chosen.values()]) if chosen else ()
        )
        uneven = _uneven(found, result)
        blocked = [key for key, one in chosen.items() if set(one.members.tolist()) & uneven]
        if not blocked:
            return result
        for key in blocked:
            del chosen[key]


def undivided(found: Anatomy, share: Callable[[Dimension], float], kept: Kept) -> list[str]:
    """The layers that keep all their channels because groups would else keep different numbers of them."""
    return [
        one.makers[0]
        for one in dimensions(found)
        if any(one.cells) and round(share(one) * len(one.members)) < len(one.members) and kept.mask[one.members].all()
    ]


def _weakest(dimension: Dimension, share: float, scores: np.ndarray) -> np.ndarray:
    """The classes to remove: in each cell all but the strongest."""
    removed = []
    cells: dict[tuple[int, ...], list[int]] = {}
    for one, cell in zip(dimension.members.tolist(), dimension.cells, strict=True):
        cells.setdefault(cell, []).append(one)
    for members in cells.values():
        ranked = sorted(members, key=lambda one: -scores[one])
        removed += ranked[max(1, round(share * len(ranked))) :]
    return np.array(removed, int)


def _uneven(found: Anatomy, kept: Kept) -> set[int]:
    """The classes in layers whose groups would keep different numbers."""
    uneven: set[int] = set()
    for part in found.parts.values():
        for atoms, groups in part.divided:
            counts = kept.mask[found.classes.of(atoms)].reshape(groups, -1).sum(1)
            if len(set(counts.tolist())) > 1 or counts[0] == 0:
                uneven.update(found.classes.of(atoms).tolist())
    return uneven


def by_name(found: Anatomy, width: float | Mapping[str, float]) -> Callable[[Dimension], float]:
    """The share that each dimension keeps, from one for all or from shares by the names of layers.

    Raises:
        ArgumentError: A share is outside (0, 1], or a layer makes no channels that can be removed.
    """
    shares = width if isinstance(width, Mapping) else {"": width}
    for name, share in shares.items():
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not 0 < share <= 1:
            raise ArgumentError(
                f"A width is a share in (0, 1]: 0.5 keeps half of the channels. Received: width={share!r}"
                + (f" for {name!r}." if name else ".")
            )
    if not isinstance(width, Mapping):
        return lambda dimension: float(width)
    known = {name for one in dimensions(found) for name in one.makers}
    if unknown := sorted(set(shares) - known):
        raise ArgumentError(
            f"These layers make no channels that can be removed: {unknown}. Received: width for {sorted(shares)}. "
            f"Those that do: {sorted(known)}."
        )
    return lambda dimension: float(min((shares[name] for name in dimension.makers if name in shares), default=1.0))
