"""A change that advice may be about, and what the families of changes have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from memfit.backends import keras_graph
from memfit.profiling import layers as layer_bytes
from memfit.shrink import anatomy, rebuilding


@dataclasses.dataclass(frozen=True)
class Change:
    """A way to make a model smaller.

    Attributes:
        kind: Of the change, in a word or two: "width", "kernels", "separable", ...
        text: What is changed, for a person.
        keeps: Which weights go over to the changed model, and what is to be done by hand.
        weight: Bytes of what it is about, roughly: what is largest is looked at first.
        build: Makes the changed model.
    """

    kind: str
    text: str
    keeps: str
    weight: int
    build: Callable[[], Any] = dataclasses.field(repr=False, compare=False)


def weights_of(layer: Any) -> int:
    """Bytes of a layer's weights, three times as training holds them."""
    return 3 * layer_bytes.variable_bytes(getattr(layer, "weights", ()))


def replaced(model: Any, chosen: dict[int, Callable[[Any], Any]], carry: Callable[[Any, Any], None]) -> Any:
    """The model with some layers replaced, and their weights carried over by ``carry(old, new)``."""
    made: list[tuple[Any, Any]] = []

    def replace(layer: Any) -> Any:
        if id(layer) not in chosen:
            return None
        new = chosen[id(layer)](layer)
        made.append((layer, new))
        return new

    def finish() -> None:
        for old, new in made:
            carry(old, new)

    return rebuilding.rebuilt(model, replace, finish=finish)


def layers_in(model: Any) -> list[Any]:
    """The layers of the model's graph, nested models walked into, each once."""
    graph = keras_graph.flattened(anatomy.checked_graph(model))
    called = {id(one.called): one.called for one in graph.operations if not one.enters}
    return [layer for layer in called.values() if hasattr(layer, "weights")]
