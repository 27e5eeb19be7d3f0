"""One call of a layer as the rules see it, and what they say of the layer: which channels it takes, makes and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from memfit.shrink.channels import Atoms, Channels, Kept, Ties


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """Where channels lie in a weight.

    Attributes:
        axes: The atoms along each axis that has any.
        scores: Whether the size of the numbers says how much a channel matters: kernels and scales, not biases.
        groups: Of a grouped convolution; its second last axis then counts inside a group, and ``axes`` names all of it.
    """

    axes: Mapping[int, Atoms]
    scores: bool = False
    groups: int = 1

    def applied(self, value: np.ndarray, kept: Kept) -> np.ndarray:
        """The value with what is kept alone."""
        if self.groups > 1:
            return self._grouped(value, kept)
        for axis, atoms in self.axes.items():
            value = np.take(value, kept.positions(atoms), axis=axis)
        return value

    def _grouped(self, value: np.ndarray, kept: Kept) -> np.ndarray:
        inputs, outputs = self.axes.get(-2), self.axes.get(-1)
        blocks = np.split(value, self.groups, axis=-1)
        for axis, atoms in ((-2, inputs), (-1, outputs)):
            if atoms is not None:
                parts = np.split(atoms, self.groups)
                blocks = [
                    np.take(block, kept.positions(part), axis=axis) for block, part in zip(blocks, parts, strict=True)
                ]
        return np.concatenate(blocks, axis=-1)

    def strengths(self, value: np.ndarray, order: int) -> list[tuple[Atoms, np.ndarray]]:
        """For each axis the sum over the others of the absolute numbers to a power, at each position."""
        power = np.abs(value.astype("float64")) ** order
        found = []
        for axis, atoms in self.axes.items():
            others = tuple(i for i in range(value.ndim) if i != axis % value.ndim)
            if self.groups > 1 and axis == -2:
                blocks = np.split(power, self.groups, axis=-1)
                found.append((atoms, np.concatenate([block.sum(others) for block in blocks])))
            else:
                found.append((atoms, power.sum(others)))
        return found


@dataclasses.dataclass(eq=False)
class Part:
    """What is known of one layer, after its first call.

    Attributes:
        layer: The layer or operation.
        cuts: By the ``id`` of each weight.
        sizes: The configuration entries that count channels, as paths into the configuration.
        divided: ``(atoms, groups)``: each of so many equal blocks must keep the same number.
        inputs: The channels it takes.
        outputs: The channels it gives.
        made: The atoms that it makes itself.
    """

    layer: Any
    cuts: dict[int, Cut] = dataclasses.field(default_factory=dict)
    sizes: list[tuple[tuple[Any, ...], Atoms]] = dataclasses.field(default_factory=list)
    divided: list[tuple[Atoms, int]] = dataclasses.field(default_factory=list)
    inputs: list[Channels] = dataclasses.field(default_factory=list)
    outputs: list[Channels] = dataclasses.field(default_factory=list)
    made: list[Atoms] = dataclasses.field(default_factory=list)


class Call:
    """One call of a layer or operation, as its rule sees it.

    Attributes:
        layer: What is called.
        inputs: The channels of its tensors, in order.
        args: Its arguments, with Channels in the place of tensors.
        kwargs: The same by name.
        shapes: Of what it gives.
        part: What is said of the layer.
    """

    def __init__(
        self, part: Part, ties: Ties, arguments: tuple[Any, Any], shapes: Sequence[tuple[int | None, ...]]
    ) -> None:
        self.layer = part.layer
        self.args, self.kwargs = arguments
        self.inputs = [leaf for leaf in keras.tree.flatten(arguments) if isinstance(leaf, Channels)]
        self.shapes = list(shapes)
        self.ties = ties
        self.part = part

    def taken(self, axis: int = -1, number: int = 0) -> Atoms | None:
        """The atoms along an axis of an input; where its channels lie along another, they must all stay."""
        return self.along(self.inputs[number], axis)

    def along(self, channels: Any, axis: int = -1) -> Atoms | None:
        """The same of any of the arguments."""
        if not isinstance(channels, Channels):
            return None
        if channels.atoms is not None and channels.axis != axis:
            self.ties.fix(channels.atoms)
            return None
        return channels.atoms

    def made(self, count: int) -> Atoms:
        """Channels of the layer's own."""
        atoms = self.ties.fresh(count)
        self.part.made.append(atoms)
        return atoms

    def cut(self, weight: Any, axes: Mapping[int, Atoms | None], *, scores: bool = False, groups: int = 1) -> None:
        """Says where channels lie in a weight; None for a weight that the layer does not have."""
        if weight is not None:
            known = {axis: atoms for axis, atoms in axes.items() if atoms is not None}
            self.part.cuts[id(weight)] = Cut(known, scores, groups)

    def size(self, path: tuple[Any, ...], atoms: Atoms | None) -> None:
        """Says which entry of the configuration counts channels."""
        if atoms is not None:
            self.part.sizes.append((path, atoms))

    def divided(self, atoms: Atoms | None, groups: int) -> None:
        """Each of ``groups`` equal blocks must keep the same number."""
        if atoms is not None and groups > 1:
            self.part.divided.append((atoms, groups))

    def given(self, atoms: Atoms | None, axis: int = -1, number: int = 0) -> Channels:
        """An output with these channels."""
        return Channels(atoms, self.shapes[number], axis)


Rule = Callable[[Call], "list[Channels] | None"]
"""The outputs of a call; None where it turns out that the layer must be left as it is."""
