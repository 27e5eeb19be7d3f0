"""The changes that advice may be about: each knows how to make the changed model.

A change is proposed where the model has what it is about; whether it can be made, and what it saves, is found by making it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from memfit.backends import keras_graph
from memfit.profiling import layers as layer_bytes
from memfit.shrink import anatomy, rebuilding, selection
from memfit.shrink.slimming import slim

_WIDTHS = (0.75, 0.5, 0.25)


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


def proposed(model: Any) -> list[Change]:
    """All changes that the model has something for, those about the most bytes first."""
    from memfit.shrink import changes_embeddings, changes_layers, changes_training

    families = (_whole_widths, _layer_widths, changes_layers.all_of, changes_embeddings.all_of, changes_training.all_of)
    found = [change for family in families for change in family(model)]
    return sorted(found, key=lambda change: -change.weight)


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


def _whole_widths(model: Any) -> Iterator[Change]:
    if not selection.dimensions(anatomy.anatomy(model)):
        return
    total = weights_of(model) + sum(_output_bytes(model).values())
    for width in _WIDTHS:
        yield Change(
            "width",
            f"every layer at {width:g} of its filters and units",
            "the weights of the channels that matter most; fine-tune afterwards",
            int(total * (1 - width * width)),
            functools.partial(slim, model, width, verbose=0),
        )


def _layer_widths(model: Any) -> Iterator[Change]:
    found = anatomy.anatomy(model)
    by_name = {part.layer.name: part.layer for part in found.parts.values()}
    outputs = _output_bytes(model)
    for one in selection.dimensions(found):
        name = one.makers[0]
        about = sum(weights_of(by_name[maker]) + outputs.get(maker, 0) for maker in one.makers)
        tied = f" and what is tied to it ({', '.join(one.makers[1:4])})" if len(one.makers) > 1 else ""
        yield Change(
            "layer width",
            f"half of the channels of {name}{tied}",
            "the weights of the channels that matter most; fine-tune afterwards",
            about // 2,
            functools.partial(slim, model, {name: 0.5}, verbose=0),
        )


def _output_bytes(model: Any) -> dict[str, int]:
    """Bytes of each layer's outputs for one sample, by name; open dimensions count as one."""
    graph = keras_graph.flattened(anatomy.checked_graph(model))
    found: dict[str, int] = {}
    for operation in graph.operations:
        sizes = (math.prod(size or 1 for size in graph.symbols[number].shape) for number in operation.writes)
        name = getattr(operation.called, "name", "")
        found[name] = found.get(name, 0) + 4 * sum(sizes)
    return found
