"""Rules for layers with weights over channels: dense, convolutions, normalization, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memfit.shrink.calls import Call, Rule
from memfit.shrink.channels import Channels


def dense(call: Call) -> list[Channels] | None:
    """``(..., in) -> (..., units)``."""
    layer, taken = call.layer, call.taken()
    units = call.made(layer.units)
    call.cut(layer.kernel, {0: taken, 1: units}, scores=True)
    call.cut(layer.bias, {0: units})
    call.size(("units",), units)
    return [call.given(units)]


def embedding(call: Call) -> list[Channels] | None:
    """``(...) -> (..., output_dim)``; what it takes are numbers of words."""
    layer = call.layer
    call.ties.fix(call.inputs[0].atoms)
    made = call.made(layer.output_dim)
    call.cut(layer.embeddings, {1: made}, scores=True)
    call.size(("output_dim",), made)
    return [call.given(made)]


def conv(call: Call) -> list[Channels] | None:
    """``filters`` from all input channels, or in each of ``groups`` from its own."""
    layer, axis = call.layer, _axis(call)
    taken, made = call.taken(axis), call.made(layer.filters)
    call.cut(layer.kernel, {-2: taken, -1: made}, scores=True, groups=layer.groups)
    call.cut(layer.bias, {0: made})
    call.size(("filters",), made)
    call.divided(taken, layer.groups)
    call.divided(made, layer.groups)
    return [call.given(made, axis)]


def conv_transpose(call: Call) -> list[Channels] | None:
    """A transposed convolution: its kernel's last axis is the input."""
    layer, axis = call.layer, _axis(call)
    taken, made = call.taken(axis), call.made(layer.filters)
    call.cut(layer.kernel, {-2: made, -1: taken}, scores=True)
    call.cut(layer.bias, {0: made})
    call.size(("filters",), made)
    return [call.given(made, axis)]


def depthwise(call: Call) -> list[Channels] | None:
    """Each channel by itself, ``depth_multiplier`` outputs for each."""
    layer, axis = call.layer, _axis(call)
    taken = call.taken(axis)
    spread = None if taken is None else np.repeat(taken, layer.depth_multiplier)
    call.cut(layer.kernel, {-2: taken}, scores=True)
    call.cut(layer.bias, {0: spread})
    return [call.given(spread, axis)]


def separable(call: Call) -> list[Channels] | None:
    """A depthwise convolution and one of size 1 over all channels."""
    layer, axis = call.layer, _axis(call)
    taken, made = call.taken(axis), call.made(layer.filters)
    spread = None if taken is None else np.repeat(taken, layer.depth_multiplier)
    call.cut(layer.depthwise_kernel, {-2: taken}, scores=True)
    call.cut(layer.pointwise_kernel, {-2: spread, -1: made}, scores=True)
    call.cut(layer.bias, {0: made})
    call.size(("filters",), made)
    return [call.given(made, axis)]


def batch_norm(call: Call) -> list[Channels] | None:
    """A scale, a shift and statistics for each channel."""
    layer, channels = call.layer, call.inputs[0]
    axis = _from_end(layer.axis, channels)
    taken = call.taken(axis)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        call.cut(getattr(layer, name, None), {0: taken}, scores=name == "gamma")
    return [call.given(taken, axis)]


def layer_norm(call: Call) -> list[Channels] | None:
    """A scale and a shift for each channel, over the last axis alone."""
    layer, channels = call.layer, call.inputs[0]
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if len(axes) != 1 or _from_end(axes[0], channels) != channels.axis:
        return None
    for name in ("gamma", "beta", "scale"):
        weight = getattr(layer, name, None)
        if weight is None or not hasattr(weight, "assign"):
            continue
        call.cut(weight, {0: channels.atoms}, scores=name != "beta")
    return [call.given(channels.atoms, channels.axis)]


def group_norm(call: Call) -> list[Channels] | None:
    """Channels in groups that keep their number."""
    layer, channels = call.layer, call.inputs[0]
    axis = _from_end(layer.axis, channels)
    taken = call.taken(axis)
    call.divided(taken, layer.groups if layer.groups != -1 else 1)
    if layer.groups == -1 or (taken is not None and layer.groups == len(taken)):
        return None
    for name in ("gamma", "beta"):
        call.cut(getattr(layer, name, None), {0: taken}, scores=name == "gamma")
    return [call.given(taken, axis)]


def prelu(call: Call) -> list[Channels] | None:
    """A slope for each channel, unless the axis is shared."""
    channels = call.inputs[0]
    shared = call.layer.alpha.shape[channels.axis] == 1
    call.cut(call.layer.alpha, {} if shared else {channels.axis: channels.atoms})
    return [call.given(channels.atoms, channels.axis)]


def statistics(call: Call) -> list[Channels] | None:
    """An adapted Normalization, whose statistics are of the data: whatever comes in must stay."""
    for channels in call.inputs:
        call.ties.fix(channels.atoms)
    for weight in call.layer.weights:
        call.cut(weight, {})
    return [call.given(None)]


def _axis(call: Call) -> int:
    """Of the channels of a convolution, from the end."""
    return -1 if call.layer.data_format == "channels_last" else 1 - len(call.inputs[0].shape)


def _from_end(axis: Any, channels: Channels) -> int:
    number = axis[0] if isinstance(axis, (list, tuple)) else axis
    return int(number if number < 0 else number - len(channels.shape))


def _each(rule: Callable[[Call], Any], name: str, dimensions: tuple[int, ...]) -> dict[str, Rule]:
    return {name.replace("#", str(number)): rule for number in dimensions}


RULES: dict[str, Rule] = {
    "Dense": dense,
    "Embedding": embedding,
    **_each(conv, "Conv#D", (1, 2, 3)),
    **_each(conv_transpose, "Conv#DTranspose", (1, 2, 3)),
    **_each(depthwise, "DepthwiseConv#D", (1, 2)),
    **_each(separable, "SeparableConv#D", (1, 2)),
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "PReLU": prelu,
    "Normalization": statistics,
}
