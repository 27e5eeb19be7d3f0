"""The changes that a model has something for: fewer channels here, the other kinds in ``changes_*.py``.

Whether a change can be made, and what it saves, is found by making it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_graph
from memfit.shrink import anatomy, changes_embeddings, changes_layers, changes_training, selection
from memfit.shrink.changes import Change, weights_of
from memfit.shrink.slimming import slim

_WIDTHS = (0.75, 0.5, 0.25)


def proposed(model: Any) -> list[Change]:
    """All changes that the model has something for, those about the most bytes first."""
    families = (_whole_widths, _layer_widths, changes_layers.all_of, changes_embeddings.all_of, changes_training.all_of)
    found = [change for family in families for change in family(model)]
    return sorted(found, key=lambda change: -change.weight)


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
