"""What of a model can be cut: the channels of every layer, which of them belong together, and where they show in weights.

The graph is walked once in its order. A rule for each kind of layer (``rules_*.py``) says which channels it makes, along which
axes of its weights they lie, and which entries of its configuration count them. What has no rule stays as it is: all that
goes in and comes out of it keeps its width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from memfit.backends import keras_graph, keras_saving
from memfit.errors import ArgumentError
from memfit.shrink import rules
from memfit.shrink.calls import Call, Part
from memfit.shrink.channels import Channels, Classes, Ties


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
        known = id(layer) in self.parts
        part = self.parts.setdefault(id(layer), Part(layer))
        call = Call(part, ties, arguments, shapes)
        if known:
            return self._again(part, call)
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
