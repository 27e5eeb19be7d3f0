"""Which layers of a built model may compute in half precision.

Keras' own layers, but for those whose numbers need float32: what makes the model's outputs (from the last layers with
weights on), softmax and other activations that are not bounded by their input, reductions that Keras does not do in float32
itself, gathers from a table (a cast would copy the table, and its gradient would lose its sparseness), preprocessing of raw
data, and everything that a layer or operation of the user's own computes or contains: it may mix its inputs with its own
tensors, which frameworks refuse in two dtypes. Layers that the user gave a precision keep it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from memfit.backends import keras_graph, keras_seam

_FRAGILE = (
    "ActivityRegularization",
    "AdditiveAttention",
    "Attention",
    "Dot",
    "Embedding",
    "FlaxLayer",
    "JaxLayer",
    "Lambda",
    "ReversibleEmbedding",
    "Softmax",
    "SpectralNormalization",
    "TFSMLayer",
    "TorchModuleWrapper",
    "UnitNormalization",
)

_SAFE_ACTIVATIONS = (
    *(
        "celu",
        "elu",
        "gelu",
        "glu",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "leaky_relu",
        "linear",
        "mish",
    ),
    *("relu", "relu6", "selu", "sigmoid", "silu", "softsign", "swish", "tanh"),
)

_SAFE_OPERATIONS = (
    *("Absolute", "Add", "Amax", "Amin", "BroadcastTo", "Cast", "Concatenate", "Einsum", "Elu", "ExpandDims", "Flip"),
    *(
        "Gelu",
        "GetItem",
        "HardSigmoid",
        "HardSilu",
        "HardSwish",
        "LeakyRelu",
        "Matmul",
        "Max",
        "Maximum",
        "Mean",
        "Min",
    ),
    *(
        "Minimum",
        "Moveaxis",
        "Multiply",
        "Negative",
        "Pad",
        "Relu",
        "Relu6",
        "Repeat",
        "Reshape",
        "Roll",
        "Selu",
        "Sigmoid",
    ),
    *("Silu", "Split", "Squeeze", "Stack", "Subtract", "Swapaxes", "Tanh", "Tile", "Transpose", "Unstack", "Where"),
)
"""Operations that neither leave float16's range nor lose what float32 would keep; Keras takes means in float32."""


def lowered_layers(model: Any) -> list[Any]:
    """The layers to compute in half precision, each once, inner layers included; the same for the same model.

    Args:
        model: A built model. Nested Functional and Sequential models are walked into. Of a model without a graph the
            direct layers count, and the last of them with weights is taken for its output.
    """
    kept = _kept_by_place(model)
    lowered: dict[int, Any] = {}
    for layer in _units(model):
        inner = _subtree(layer)
        if any(id(one) in kept for one in inner) or not all(map(_is_safe, inner)):
            kept |= set(map(id, inner))
        else:
            lowered.update((id(one), one) for one in inner)
    # A layer may also be used inside another that is kept.
    return [layer for key, layer in lowered.items() if key not in kept]


def _units(container: Any) -> Iterator[Any]:
    """The layers that compute, outermost first; models with a graph are walked into."""
    for layer in keras_graph.direct_layers(container):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if keras_graph.graph_of(layer) is not None:
            yield from _units(layer)
        elif any(keras_graph.graph_of(inner) is not None for inner in keras_graph.direct_layers(layer)) and _is_own(
            layer
        ):
            yield from _units(layer)  # a wrapper such as TimeDistributed around a model
        else:
            yield layer


def _subtree(layer: Any) -> list[Any]:
    return [layer, *keras_seam.flat_layers(layer)]


def _is_own(layer: Any) -> bool:
    """Whether the layer's class is Keras'."""
    return keras_seam.is_of_keras(type(layer), "layers.")


def _is_safe(layer: Any) -> bool:
    policy = layer.dtype_policy
    plain = isinstance(policy, keras.DTypePolicy) and policy.name == "float32" and layer.autocast
    fragile = type(layer).__name__ in _FRAGILE or ".preprocessing." in type(layer).__module__
    holds_state = getattr(layer, "stateful", False)
    regularized = getattr(layer, "activity_regularizer", None) is not None
    activations = (getattr(layer, name, None) for name in ("activation", "recurrent_activation"))
    return (
        _is_own(layer)
        and plain
        and all(map(_is_safe_activation, activations))
        and not (fragile or holds_state or regularized)
    )


def _is_safe_activation(activation: Any) -> bool:
    if activation is None or isinstance(activation, keras.layers.Layer):
        return True  # a layer is looked at by itself
    return keras_seam.is_of_keras(activation) and getattr(activation, "__name__", "") in _SAFE_ACTIVATIONS


def _kept_by_place(model: Any) -> set[int]:
    """The ids of the layers that stay in float32 for where they are: at the outputs, or before a fragile operation."""
    functional = keras_graph.graph_of(model)
    if functional is None:
        layers = keras_graph.direct_layers(model)
        weighted = [place for place, layer in enumerate(layers) if layer.weights]
        last = weighted[-1] if weighted else 0
        return {id(one) for layer in layers[last:] for one in _subtree(layer)}
    kept: set[int] = set()
    for place, graph in enumerate(_graphs(functional)):
        makers = {number: operation for operation in graph.operations for number in operation.writes}
        if place == 0:
            kept |= _kept_behind(graph.outputs, makers, through_layers=True)
        for operation in graph.operations:
            called = operation.called
            if not (operation.enters or isinstance(called, keras.layers.Layer) or _is_safe_operation(called)):
                kept |= _kept_behind(operation.reads, makers, through_layers=False)
    return kept


def _graphs(functional: Any) -> Iterator[Any]:
    """The flattened graph of the model, then those of models that it does not walk into."""
    yield keras_graph.flattened(functional)
    for layer in keras_seam.flat_layers(functional):
        nested = keras_graph.graph_of(layer)
        if nested is not None and nested is not functional:
            yield keras_graph.flattened(nested)


def _is_safe_operation(operation: Any) -> bool:
    return keras_seam.is_of_keras(type(operation), "ops.") and type(operation).__name__ in _SAFE_OPERATIONS


def _kept_behind(numbers: Any, makers: Any, *, through_layers: bool) -> set[int]:
    """The ids of the layers that made some tensors; with ``through_layers`` back to the first that have weights."""
    kept: set[int] = set()
    pending, seen = list(numbers), set()
    while pending:
        number = pending.pop()
        operation = makers.get(number)
        if operation is None or number in seen:
            continue
        seen.add(number)
        is_layer = isinstance(operation.called, keras.layers.Layer) and not operation.enters
        if is_layer:
            kept |= set(map(id, _subtree(operation.called)))
        if not is_layer or (through_layers and not operation.called.weights):
            pending += operation.reads
    return kept
