"""What of a model can be cut: the channels of every layer, which of them belong together, and where they show in weights.

The graph is walked once in its order. A rule for each kind of layer (``rules_*.py``) says which channels it makes, along which
axes of its weights they lie, and which entries of its configuration count them. What has no rule stays as it is: all that
goes in and comes out of it keeps its width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_graph, keras_saving
from memfit.errors import ArgumentError
from memfit.shrink.channels import Atoms, Channels, Classes, Kept, Ties


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
    """

    def __init__(
        self, part: Part, ties: Ties, arguments: tuple[Any, Any], shapes: Sequence[tuple[int | None, ...]]
    ) -> None:
        self.layer = part.layer
        self.args, self.kwargs = arguments
        self.inputs = [leaf for leaf in keras.tree.flatten(arguments) if isinstance(leaf, Channels)]
        self.shapes = list(shapes)
        self.ties = ties
        self._part = part

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
        self._part.made.append(atoms)
        return atoms

    def cut(self, weight: Any, axes: Mapping[int, Atoms | None], *, scores: bool = False, groups: int = 1) -> None:
        """Says where channels lie in a weight; None for a weight that the layer does not have."""
        if weight is not None:
            known = {axis: atoms for axis, atoms in axes.items() if atoms is not None}
            self._part.cuts[id(weight)] = Cut(known, scores, groups)

    def size(self, path: tuple[Any, ...], atoms: Atoms | None) -> None:
        """Says which entry of the configuration counts channels."""
        if atoms is not None:
            self._part.sizes.append((path, atoms))

    def divided(self, atoms: Atoms | None, groups: int) -> None:
        """Each of ``groups`` equal blocks must keep the same number."""
        if atoms is not None and groups > 1:
            self._part.divided.append((atoms, groups))

    def given(self, atoms: Atoms | None, axis: int = -1, number: int = 0) -> Channels:
        """An output with these channels."""
        return Channels(atoms, self.shapes[number], axis)


Rule = Callable[[Call], "list[Channels] | None"]
"""The outputs of a call; None where it turns out that the layer must be left as it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
    """What of a model can be cut.

    Attributes:
        model: The model.
        parts: By the ``id`` of each layer or operation that is in the graph.
        classes: The classes of channels.
        left: The layers that must stay as they are, with the reason.
    """

    model: Any
    parts: Mapping[int, Part]
    classes: Classes
    left: Mapping[str, str]


def anatomy(model: Any) -> Anatomy:
    """Walks the model's graph.

    Raises:
        ArgumentError: The model is not built, or has no graph: a subclass with a call of its own.
    """
    functional = checked_graph(model)
    graph = keras_graph.flattened(functional)
    ties, walk = Ties(), _Walk()
    channels = {number: Channels(None, tuple(symbol.shape)) for number, symbol in enumerate(graph.symbols)}
    with keras_saving.no_imports():
        for operation in graph.operations:
            args = operation.arguments(channels)
            shapes = [tuple(graph.symbols[number].shape) for number in operation.writes]
            outputs = keras.tree.flatten(args) if operation.enters else walk.call(operation.called, args, shapes, ties)
            for number, output in zip(operation.writes, outputs, strict=False):
                channels[number] = output
    for number in graph.outputs:
        ties.fix(channels[number].atoms)
    return Anatomy(model, walk.parts, ties.classes(), walk.left)


def checked_graph(model: Any) -> Any:
    """The model's Functional.

    Raises:
        ArgumentError: The model is not a built Keras model with a graph.
    """
    if not isinstance(model, keras.Model):
        raise ArgumentError(
            f"memfit shrinks Keras 3 models. Received: a {type(model).__module__}.{type(model).__qualname__}. "
            "Pass a keras.Model: Sequential or Functional."
        )
    if not model.built:
        raise ArgumentError(
            f"The model is not built: its layers have no weights yet. Received: {model.name!r}. Add a keras.Input as its first "
            "layer, or call it once on data."
        )
    functional = keras_graph.graph_of(model)
    if functional is None:
        raise ArgumentError(
            f"The model has no graph that can be followed. Received: {model.name!r}, a {type(model).__name__} with a call of "
            "its own. Build it as a Functional or Sequential model, or shrink such models inside it."
        )
    return functional


class _Walk:
    """Applies the rules call by call."""

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}
        self.left: dict[str, str] = {}

    def call(
        self, layer: Any, arguments: tuple[Any, Any], shapes: list[tuple[int | None, ...]], ties: Ties
    ) -> list[Channels]:
        """The channels of the outputs."""
        from memfit.shrink import rules

        known = self.parts.get(id(layer))
        call = Call(known or Part(layer), ties, arguments, shapes)
        if known is not None:
            return self._again(known, call)
        part = self.parts[id(layer)] = call._part
        rule, reason = rules.rule_of(layer)
        outputs = None if rule is None else rule(call)
        if outputs is None or not _covers(part):
            outputs = self._left(part, call, reason or "its shapes leave no way to follow its channels")
        part.inputs, part.outputs = call.inputs, outputs
        return outputs

    def _again(self, part: Part, call: Call) -> list[Channels]:
        """A layer that is called once more keeps what it is: its inputs are tied to those of its first call."""
        for first, again in zip(part.inputs, call.inputs, strict=False):
            call.ties.tie(first.atoms, again.atoms)
        return [
            Channels(first.atoms, shape, first.axis) for first, shape in zip(part.outputs, call.shapes, strict=False)
        ]

    def _left(self, part: Part, call: Call, reason: str) -> list[Channels]:
        matters = bool(getattr(part.layer, "weights", ())) or any(one.atoms is not None for one in call.inputs)
        for channels in call.inputs:
            call.ties.fix(channels.atoms)
        for atoms in part.made:
            call.ties.fix(atoms)
        part.cuts, part.sizes, part.divided, part.made = {}, [], [], []
        if matters:
            self.left[part.layer.name] = reason
        return [Channels(None, shape) for shape in call.shapes]


def _covers(part: Part) -> bool:
    """Whether the rule knew every weight of the layer."""
    return all(id(weight) in part.cuts for weight in getattr(part.layer, "weights", ()))
