"""Rules for what joins several tensors: elementwise operations and concatenation."""

from __future__ import annotations

import math

import keras
import numpy as np

from memfit.shrink.calls import Call, Rule
from memfit.shrink.channels import Channels


def elementwise(call: Call) -> list[Channels] | None:
    """Tensors position by position: their channels are tied. One channel that is spread over all says nothing of them."""
    rank = len(call.shapes[0])
    constants = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if _is_array(leaf)]
    if any(math.prod(leaf.shape) > 1 for leaf in constants):
        return None
    wide = [one for one in call.inputs if one.width != 1]
    axes = {one.axis for one in wide if one.atoms is not None}
    if len(axes) > 1 or any(len(one.shape) < -axis for one in wide for axis in axes):
        return None
    for one in call.inputs:
        if one.width == 1:
            call.ties.fix(one.atoms)
    if not wide:
        return [call.given(None)]
    axis = axes.pop() if axes else -1
    if axis < -rank:
        return None
    atoms = wide[0].atoms
    for one in wide[1:]:
        atoms = call.ties.tie(atoms, one.atoms)
    return [call.given(atoms, axis)]


def concatenation(call: Call) -> list[Channels] | None:
    """Side by side along the channels; along another axis they are tied position by position."""
    axis = call.layer.axis
    rank = len(call.inputs[0].shape)
    axis = axis if axis < 0 else axis - rank
    axes = {one.axis for one in call.inputs if one.atoms is not None}
    if not axes:
        return [call.given(None)]
    if len(axes) > 1:
        return None
    if axis not in axes:
        return elementwise(call)
    # Where a side must stay, its positions are atoms that stay.
    sides = []
    for one in call.inputs:
        if one.atoms is None:
            if one.width is None:
                return None
            fixed = call.ties.fresh(one.width)
            call.ties.fix(fixed)
            sides.append(fixed)
        else:
            sides.append(one.atoms)
    return [call.given(np.concatenate(sides), axis)]


def _is_array(leaf: object) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, Channels)


_ELEMENTWISE_LAYERS = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
_ELEMENTWISE_OPS = (
    *(
        "Add",
        "Subtract",
        "Multiply",
        "Divide",
        "DivideNoNan",
        "TrueDivide",
        "Maximum",
        "Minimum",
        "Power",
        "FloorDivide",
    ),
    *("Mod", "Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "Where", "LogicalAnd", "LogicalOr"),
    *("Arctan2", "Hypot", "Logaddexp"),
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE_LAYERS, elementwise),
    **{f"ops.{name}": elementwise for name in _ELEMENTWISE_OPS},
    "Concatenate": concatenation,
    "ops.Concatenate": concatenation,
}
