"""Rules for what lets channels through, reshapes them, or sums over other axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memfit.shrink.calls import Call, Rule
from memfit.shrink.channels import Atoms, Channels


def passing(call: Call) -> list[Channels] | None:
    """The channels stay where they are."""
    channels = call.inputs[0]
    if len(call.shapes[0]) != len(channels.shape) or call.shapes[0][channels.axis] != channels.width:
        return None
    return [call.given(channels.atoms, channels.axis)]


def softmax(call: Call) -> list[Channels] | None:
    """Over an axis other than the channels they pass; over the channels they are classes, which must stay."""
    channels = call.inputs[0]
    axes = getattr(call.layer, "axis", -1)
    axes = axes if isinstance(axes, (list, tuple)) else [axes]
    if any((axis if axis < 0 else axis - len(channels.shape)) == channels.axis for axis in axes):
        return None
    return passing(call)


def activation(call: Call) -> list[Channels] | None:
    """Every activation function is elementwise but a softmax."""
    name = getattr(call.layer.activation, "__name__", "")
    if ("soft" in name and "max" in name) or name == "sparsemax":
        return None
    own = not getattr(call.layer.activation, "__module__", "keras.").startswith("keras.")
    return None if own else passing(call)


def global_pooling(call: Call) -> list[Channels] | None:
    """Every axis but the channels is summed up."""
    channels = call.inputs[0]
    last = call.layer.data_format == "channels_last"
    axis = -1 if last else 1 - len(channels.shape)
    return [call.given(call.taken(axis), axis if call.layer.keepdims else -1)]


def repeat_vector(call: Call) -> list[Channels] | None:
    """``(features) -> (n, features)``."""
    return [call.given(call.taken())]


def flatten(call: Call) -> list[Channels] | None:
    """Each channel becomes the features of all its positions; Keras puts channels last before."""
    channels = call.inputs[0]
    if channels.atoms is None or len(channels.shape) == 2:
        return [call.given(channels.atoms)]
    others = [size for i, size in enumerate(channels.shape[1:], 1 - len(channels.shape)) if i != channels.axis]
    if None in others:
        return None
    if call.layer.data_format == "channels_last" and channels.axis != -1:
        return None
    return [call.given(np.tile(channels.atoms, math.prod(int(size or 1) for size in others)))]


def reshape_layer(call: Call) -> list[Channels] | None:
    """A ``Reshape`` whose target names the last axis."""
    return _reshaped(call, "target_shape")


def reshape_operation(call: Call) -> list[Channels] | None:
    """``keras.ops.reshape``."""
    return _reshaped(call, "newshape")


def _reshaped(call: Call, entry: str) -> list[Channels] | None:
    """Where the old last axis makes up whole parts of the new one, or the new of the old, the channels can be followed."""
    atoms, shape = call.inputs[0].atoms, call.shapes[0]
    if atoms is None:
        return [call.given(None)]
    atoms = call.taken()
    if atoms is None or None in shape[1:] or None in call.inputs[0].shape[1:]:
        return None
    spread = _last_axis(call, atoms, int(shape[-1] or 0))
    if spread is not None and call.layer.get_config().get(entry, [-1])[-1] != -1:
        call.size((entry,), spread)
    return None if spread is None else [call.given(spread)]


def _last_axis(call: Call, atoms: Atoms, last: int) -> Atoms | None:
    if last % len(atoms) == 0:
        return np.tile(atoms, last // len(atoms))
    if last and len(atoms) % last == 0:
        rows = atoms.reshape(-1, last)
        for row in rows[1:]:
            call.ties.tie(rows[0], row)
        return rows[0]
    return None


def expand_dims(call: Call) -> list[Channels] | None:
    """A new axis of 1 that is not the last."""
    channels, axis = call.inputs[0], call.layer.axis
    if channels.atoms is None:
        return [call.given(None)]
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    rank = len(call.shapes[0])
    if channels.axis != -1 or any((a if a < 0 else a - rank) == -1 for a in axes):
        return None
    return [call.given(channels.atoms)]


def reduction(call: Call) -> list[Channels] | None:
    """``keras.ops.mean`` and its like over axes other than the channels."""
    channels, operation = call.inputs[0], call.layer
    if channels.atoms is None:
        return [call.given(None)]
    axes = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    rank = len(channels.shape)
    if channels.axis != -1 or any(a is None or (a if a < 0 else a - rank) == -1 for a in axes):
        return None
    return [call.given(channels.atoms)]


def permute(call: Call) -> list[Channels] | None:
    """The channels move to another axis."""
    channels, dims = call.inputs[0], tuple(call.layer.dims)
    old = len(channels.shape) + channels.axis
    return [call.given(channels.atoms, dims.index(old) + 1 - len(channels.shape) if old in dims else -1)]


def _by_name(rule: Any, *names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


def _for_dimensions(rule: Any, *names: str) -> dict[str, Rule]:
    return {f"{name}{number}D": rule for name in names for number in (1, 2, 3)}


RULES: dict[str, Rule] = {
    **_by_name(
        passing, "Dropout", "GaussianDropout", "GaussianNoise", "AlphaDropout", "Identity", "Masking", "Rescaling"
    ),
    **_by_name(passing, "ReLU", "LeakyReLU", "ELU", "ActivityRegularization", "UnitNormalization"),
    **_for_dimensions(
        passing, "MaxPooling", "AveragePooling", "ZeroPadding", "Cropping", "UpSampling", "SpatialDropout"
    ),
    **_for_dimensions(passing, "AdaptiveAveragePooling", "AdaptiveMaxPooling"),
    **_by_name(passing, "ops.Relu", "ops.Relu6", "ops.Sigmoid", "ops.Tanh", "ops.Softplus", "ops.Softsign", "ops.Silu"),
    **_by_name(
        passing, "ops.Gelu", "ops.Elu", "ops.Selu", "ops.LeakyRelu", "ops.HardSigmoid", "ops.HardSilu", "ops.Exp"
    ),
    **_by_name(passing, "ops.Log", "ops.Log1p", "ops.Sqrt", "ops.Rsqrt", "ops.Square", "ops.Absolute", "ops.Negative"),
    **_by_name(passing, "ops.Clip", "ops.Cast", "ops.Sign", "ops.Round", "ops.StopGradient", "ops.Abs", "ops.Expm1"),
    **_for_dimensions(global_pooling, "GlobalAveragePooling", "GlobalMaxPooling"),
    **_by_name(reduction, "ops.Mean", "ops.Sum", "ops.Max", "ops.Min", "ops.Amax", "ops.Std", "ops.Var"),
    "Activation": activation,
    "Softmax": softmax,
    "ops.Softmax": softmax,
    "ops.LogSoftmax": softmax,
    "Flatten": flatten,
    "Reshape": reshape_layer,
    "ops.Reshape": reshape_operation,
    "ops.ExpandDims": expand_dims,
    "RepeatVector": repeat_vector,
    "Permute": permute,
}
