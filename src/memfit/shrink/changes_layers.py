"""Changes to layers: smaller kernels, separable convolutions, global pooling instead of Flatten, smaller inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_graph
from memfit.shrink import anatomy, rebuilding
from memfit.shrink.changes import Change, layers_in, replaced, weights_of
from memfit.shrink.selection import values

_CONVOLUTIONS = (
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
)
_SMALL_KERNEL = 3


def all_of(model: Any) -> Iterator[Change]:
    """Every change of this family."""
    layers = layers_in(model)
    yield from _each_and_all(model, [one for one in layers if _has_large_kernel(one)], _smaller_kernels)
    yield from _each_and_all(model, [one for one in layers if _can_be_separable(one)], _separable)
    yield from _pooled(model)
    yield from _smaller_input(model)


def _each_and_all(model: Any, layers: list[Any], change: Callable[[Any, list[Any]], Change]) -> Iterator[Change]:
    for layer in layers:
        yield change(model, [layer])
    if len(layers) > 1:
        yield change(model, layers)


def _named(layers: list[Any]) -> str:
    return layers[0].name if len(layers) == 1 else f"{len(layers)} layers"


# Smaller kernels


def _has_large_kernel(layer: Any) -> bool:
    return type(layer).__name__ in _CONVOLUTIONS and max(layer.kernel_size) > _SMALL_KERNEL and layer.padding == "same"


def _smaller_kernels(model: Any, layers: list[Any]) -> Change:
    return Change(
        "kernels",
        f"kernels of {_SMALL_KERNEL} instead of {max(max(one.kernel_size) for one in layers)} in {_named(layers)}",
        "the middle of each kernel; fine-tune afterwards",
        sum(map(weights_of, layers)),
        lambda: replaced(model, {id(one): _with_small_kernel for one in layers}, _middle),
    )


def _with_small_kernel(layer: Any) -> Any:
    sizes = [min(size, _SMALL_KERNEL) for size in layer.kernel_size]
    return rebuilding.from_config(layer, {**layer.get_config(), "kernel_size": sizes})


def _middle(old: Any, new: Any) -> None:
    for source, target in zip(old.weights, new.weights, strict=True):
        cut = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(source.shape, target.shape, strict=True))
        target.assign(values(source)[cut])


# Separable convolutions


def _can_be_separable(layer: Any) -> bool:
    known = type(layer).__name__ in ("Conv1D", "Conv2D")
    return known and layer.groups == 1 and math.prod(layer.kernel_size) > 1 and layer.kernel.shape[-2] > _SMALL_KERNEL


def _separable(model: Any, layers: list[Any]) -> Change:
    return Change(
        "separable",
        f"separable convolutions instead of full ones in {_named(layers)}",
        "of each input channel's kernels the nearest separable one; fine-tune afterwards",
        sum(map(weights_of, layers)),
        lambda: replaced(model, {id(one): _as_separable for one in layers}, _nearest_separable),
    )


def _as_separable(layer: Any) -> Any:
    config = layer.get_config()
    kind = getattr(keras.layers, f"Separable{type(layer).__name__}")
    same = (
        "name",
        "trainable",
        "dtype",
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
    )
    rest = ("activation", "use_bias", "bias_initializer", "bias_regularizer", "activity_regularizer", "bias_constraint")
    return kind.from_config({name: config[name] for name in (*same, *rest)})


def _nearest_separable(old: Any, new: Any) -> None:
    """Of each input channel's matrix of positions and filters the first singular vectors."""
    kernel = values(old.kernel)
    *sizes, channels, filters = kernel.shape
    matrices = np.moveaxis(kernel.reshape(-1, channels, filters), 1, 0)
    left, strengths, right = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(strengths[:, 0])
    new.depthwise_kernel.assign((left[:, :, 0] * root[:, None]).T.reshape(*sizes, channels, 1))
    new.pointwise_kernel.assign((right[:, 0, :] * root[:, None]).reshape(*([1] * len(sizes)), channels, filters))
    if old.bias is not None:
        new.bias.assign(values(old.bias))


# Global pooling


def _pooled(model: Any) -> Iterator[Change]:
    graph = keras_graph.flattened(anatomy.checked_graph(model))
    readers: dict[int, list[Any]] = {}
    for operation in graph.operations:
        for number in operation.reads:
            readers.setdefault(number, []).append(operation)
    for operation in graph.operations:
        if type(operation.called).__name__ != "Flatten" or operation.enters:
            continue
        shape = graph.symbols[operation.reads[0]].shape
        after = readers.get(operation.writes[0], [])
        while len(after) == 1 and type(after[0].called).__name__ == "Dropout":
            after = readers.get(after[0].writes[0], [])
        positions = list(shape[1:-1])
        known = len(shape) > 2 and None not in positions and math.prod(positions) > 1
        if known and len(after) == 1 and type(after[0].called).__name__ == "Dense":
            yield _pooling_instead(model, operation.called, after[0].called, len(shape) - 2)


def _pooling_instead(model: Any, flatten: Any, dense: Any, rank: int) -> Change:
    def pooling(layer: Any) -> Any:
        kind = getattr(keras.layers, f"GlobalAveragePooling{rank}D")
        return kind(name=layer.name, data_format=layer.data_format, dtype=layer.dtype_policy)

    def carry(old: Any, new: Any) -> None:
        if old is dense:
            kernel = values(dense.kernel)
            # What the layer answers to inputs that are the same everywhere stays.
            new.kernel.assign(kernel.reshape(-1, new.kernel.shape[0], kernel.shape[1]).sum(0))
            if dense.bias is not None:
                new.bias.assign(values(dense.bias))

    def build() -> Any:
        copy = {id(flatten): pooling, id(dense): lambda layer: rebuilding.from_config(layer, layer.get_config())}
        return replaced(model, copy, carry)

    return Change(
        "global pooling",
        f"the average over all positions instead of {flatten.name} before {dense.name}",
        f"all weights, those of {dense.name} summed over positions; fine-tune afterwards",
        weights_of(dense),
        build,
    )


# Smaller inputs


def _smaller_input(model: Any) -> Iterator[Change]:
    images = [one for one in model.inputs if len(one.shape) == 4 and None not in one.shape[1:]]
    if not images or any(min(_sides(one.shape)) < 16 for one in images):
        return
    sizes = ", ".join("x".join(map(str, _halved(one.shape)[1:])) for one in images)
    about = sum(math.prod(one.shape[1:]) for one in images) * 4
    changed = [layer for layer in layers_in(model) if type(layer).__name__ == "Dense"]

    def build() -> Any:
        chosen = {id(one): one for one in images}
        inputs = keras.tree.map_structure(
            lambda one: keras.Input(
                batch_shape=_halved(one.shape) if id(one) in chosen else one.shape, dtype=one.dtype, name=one.name
            ),
            model.input if not isinstance(model, keras.Sequential) else model.inputs[0],
        )
        return rebuilding.rebuilt(model, lambda layer: None, input_tensors=inputs)

    yield Change(
        "smaller input",
        f"images of {sizes}",
        "every weight whose shape does not depend on the image's size; resize the data, train what starts anew"
        + (f" (a {changed[0].name} after a Flatten)" if changed else ""),
        about * 64,
        build,
    )


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:3] if keras.config.image_data_format() == "channels_last" else shape[2:4]


def _halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    if keras.config.image_data_format() == "channels_last":
        return (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    return (shape[0], shape[1], shape[2] // 2, shape[3] // 2)
