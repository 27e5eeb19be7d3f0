"""When a step is at its peak: the phase and the layer of an operation, from its name in the graph.

TensorFlow puts an operation under the name of each layer whose call created it, with ``_1`` behind a name that was taken;
its gradient under ``gradient_tape`` and the same names; the update under the optimizer's name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.on_tensorflow.program import Operation, Program
from memfit.records import Moment

_NUMBERED = re.compile(r"_\d+$")
_MOST_CALLS = 16


def moment(model: Any, program: Program, operation: Operation | None) -> Moment | None:
    """The moment at which an operation of the program runs; None for no operation."""
    if operation is None:
        return None
    optimizer = getattr(model, "optimizer", None)
    phase = _phase(program, operation, None if optimizer is None else optimizer.name)
    # An update works on weights; a layer that is named as the optimizer is has no part in it.
    layer = None if phase == "update" else _layer(model, program, operation)
    return Moment(phase, layer, operation.name)


def _phase(program: Program, operation: Operation, optimizer: str | None) -> str:
    scopes = operation.scope.split("/")
    if any(_is_gradient(scope) for scope in scopes):
        return "backward"
    if optimizer is not None and any(optimizer in (scope, _NUMBERED.sub("", scope)) for scope in scopes[:-1]):
        return "update"
    around = next((p for p in _programs(program) if any(o is operation for o in p.operations)), program)
    names = [any(map(_is_gradient, o.scope.split("/"))) for o in around.operations]
    here = next((place for place, o in enumerate(around.operations) if o is operation), 0)
    if not any(names) or any(names[here:]):
        return "forward"
    # After the gradients: in a loop over parts they are added up.
    return "update" if around is program else "backward"


def _is_gradient(scope: str) -> bool:
    return scope.startswith(("gradient_tape", "gradients"))


def _layer(model: Any, program: Program, operation: Operation) -> str | None:
    """The path of the innermost layer of whose scope the operation's name tells."""
    scopes = {scope for p in _programs(program) for o in p.operations for scope in o.scope.split("/")[:-1]}
    paths: dict[str, str] = {}
    names: dict[str, str] = {}
    for layer in keras_seam.flat_layers(model):
        path = names[layer.name] = layer.path or layer.name
        # Where a scope's name was taken, the layer's is the next free one, in the order of the layers.
        numbered = itertools.chain([layer.name], (f"{layer.name}_{number}" for number in range(1, _MOST_CALLS)))
        found = next((name for name in numbered if name in scopes and name not in paths), None)
        if found is not None:
            paths[found] = path
    for scope in reversed(operation.scope.split("/")[:-1]):
        path = paths.get(scope) or names.get(_NUMBERED.sub("", scope))
        if path is not None:
            return path
    return None


def _programs(program: Program) -> Iterator[Program]:
    """The program and those of its loops and branches."""
    yield program
    for operation in program.operations:
        for inner in operation.programs:
            yield from _programs(inner)
