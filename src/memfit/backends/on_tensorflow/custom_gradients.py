"""TensorFlow's registry of custom gradients, which holds the graphs that they are in for as long as the process lives.

TensorFlow registers the gradient of each ``tf.custom_gradient`` that it meets in a graph by a name that it never uses again
and never forgets, and the gradient holds its graph. Keras' optimizers contain one (the sum over replicas), so that each ``fit``
of a new model leaves its graph behind: 22 MiB for two layers, which ``keras.backend.clear_session`` does not free either.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from tensorflow.python.framework import ops

from memfit.backends import host_allocator

_PREFIX = "CustomGradient-"
_UPDATE = "all_reduce"
"""In the name of the gradient that only the graph of a training step has."""


@contextlib.contextmanager
def dropped() -> Iterator[None]:
    """Frees the graphs that are traced inside, and gives their memory back."""
    registry = _registry()
    known = set(registry)
    try:
        yield
    finally:
        _forget(name for name in set(registry) - known if name.startswith(_PREFIX))


def forget_training_steps() -> None:
    """Forgets the gradients in graphs of training steps: nothing takes a gradient through an update of the weights.

    A step that is still used keeps its graph by itself. Gradients in other graphs stay.
    """
    _forget(_in_training_steps())


def _in_training_steps() -> list[str]:
    owners = {name: _owner(entry) for name, entry in _registry().items() if name.startswith(_PREFIX)}
    updating = {id(graph) for graph, updates in owners.values() if updates}
    return [name for name, (graph, _) in owners.items() if id(graph) in updating]


def _registry() -> dict[str, Any]:
    return getattr(getattr(ops, "gradient_registry", None), "_registry", {})


def _forget(names: Any) -> None:
    for name in names:
        _registry().pop(name, None)
    # A graph is full of cycles.
    gc.collect()
    host_allocator.trim()


def _owner(entry: Any) -> tuple[Any, bool]:
    """The graph that a registered gradient is in, and whether it is that of an update; None and False where it does not say."""
    held = _closure(_closure(entry.get("type")).get("tape_grad_fn"))
    result = held.get("result")
    first = result[0] if isinstance(result, (list, tuple)) and result else result
    return getattr(first, "graph", None), _UPDATE in getattr(held.get("grad_fn"), "__qualname__", "")


def _closure(function: Any) -> dict[str, Any]:
    """What a function holds of the functions around it, by name."""
    names, cells = (
        getattr(getattr(function, "__code__", None), "co_freevars", ()),
        getattr(function, "__closure__", None),
    )
    return dict(zip(names, (cell.cell_contents for cell in cells or ()), strict=False))
