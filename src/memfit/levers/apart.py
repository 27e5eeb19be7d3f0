"""Models that treat samples apart by what their layers are: nothing has to run to know that their batches may be split.

Testing that on the model (``micro_batch.separability``) takes memory, on TensorFlow more than the step in parts. Here every
layer and loss is one of Keras' own whose definition keeps samples apart; anything else, and any setting that could mix them, is
not known, which does not say that it mixes.
"""

from __future__ import annotations

from typing import Any

import keras

from memfit.backends import keras_losses, keras_saving
from memfit.backends.keras_seam import is_of_keras, overrides

REASON = (
    "exact: each of its layers and losses treats samples apart by its definition (not tested, as there is little room)"
)

_LAYERS = frozenset(
    {
        keras.layers.InputLayer,
        keras.layers.Dense,
        keras.layers.Embedding,
        keras.layers.Masking,
        keras.layers.Activation,
        keras.layers.ReLU,
        keras.layers.LeakyReLU,
        keras.layers.ELU,
        keras.layers.PReLU,
        keras.layers.Dropout,
        keras.layers.SpatialDropout1D,
        keras.layers.SpatialDropout2D,
        keras.layers.SpatialDropout3D,
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
        keras.layers.MaxPooling1D,
        keras.layers.MaxPooling2D,
        keras.layers.MaxPooling3D,
        keras.layers.AveragePooling1D,
        keras.layers.AveragePooling2D,
        keras.layers.AveragePooling3D,
        keras.layers.GlobalMaxPooling1D,
        keras.layers.GlobalMaxPooling2D,
        keras.layers.GlobalMaxPooling3D,
        keras.layers.GlobalAveragePooling1D,
        keras.layers.GlobalAveragePooling2D,
        keras.layers.GlobalAveragePooling3D,
        keras.layers.ZeroPadding1D,
        keras.layers.ZeroPadding2D,
        keras.layers.ZeroPadding3D,
        keras.layers.Cropping1D,
        keras.layers.Cropping2D,
        keras.layers.Cropping3D,
        keras.layers.UpSampling1D,
        keras.layers.UpSampling2D,
        keras.layers.UpSampling3D,
        keras.layers.Flatten,
        keras.layers.RepeatVector,
        keras.layers.Permute,
        keras.layers.Add,
        keras.layers.Subtract,
        keras.layers.Multiply,
        keras.layers.Average,
        keras.layers.Maximum,
        keras.layers.Minimum,
        keras.layers.LSTM,
        keras.layers.GRU,
        keras.layers.SimpleRNN,
    }
)

_ALONG_AXIS = (keras.layers.LayerNormalization, keras.layers.Softmax, keras.layers.Concatenate)
"""They work along an axis, which must not be that of the samples."""

_AROUND = {keras.layers.TimeDistributed: ("layer",), keras.layers.Bidirectional: ("forward_layer", "backward_layer")}

_ELEMENTWISE = ("Add", "Subtract", "Multiply")
"""Operators between two tensors."""

_LOSSES = frozenset(
    {
        keras.losses.mean_squared_error,
        keras.losses.mean_absolute_error,
        keras.losses.mean_absolute_percentage_error,
        keras.losses.mean_squared_logarithmic_error,
        keras.losses.huber,
        keras.losses.log_cosh,
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
        keras.losses.categorical_crossentropy,
        keras.losses.categorical_focal_crossentropy,
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.hinge,
        keras.losses.squared_hinge,
        keras.losses.categorical_hinge,
        keras.losses.kl_divergence,
        keras.losses.poisson,
    }
)


def is_apart(model: Any) -> bool:
    """Whether it is known of a built and compiled model, without running it, that each sample's loss depends on no other."""
    losses = keras_losses.compiled_losses(model)
    with keras_saving.no_imports():
        if not losses or not all(_is_known(loss) for loss in losses):
            return False
        if keras_losses.may_be_scalar(model) or keras_losses.has_call_losses(model):
            return False
        return _is_graph_apart(model)


def _is_known(loss: Any) -> bool:
    return getattr(loss, "fn", None) in _LOSSES and loss.get_config().get("axis", -1) == -1


def _is_graph_apart(model: Any) -> bool:
    operations = getattr(model, "operations", model.layers)  # a Sequential model has layers alone
    if not is_of_keras(type(model)) or overrides(model, "call") or "call" in vars(model):
        return False
    if any(len(tensor.shape) < 2 for tensor in model.inputs):  # the last axis would be the samples'
        return False
    return all(_is_apart(operation) for operation in operations)


def _is_apart(operation: Any) -> bool:
    kind = type(operation)
    if not isinstance(operation, keras.layers.Layer):
        shapes = [tensor.shape for tensor in keras.tree.flatten(operation.input)]
        is_operator = is_of_keras(kind, "ops.numpy") and kind.__name__ in _ELEMENTWISE
        return is_operator and len(shapes) == 2 and len(shapes[0]) == len(shapes[1])
    if isinstance(operation, keras.Model):
        return _is_graph_apart(operation)
    if "call" in vars(operation) or getattr(operation, "stateful", False) or not _has_known_activations(operation):
        return False
    if kind in _AROUND:
        return all(_is_apart(getattr(operation, inner)) for inner in _AROUND[kind])
    if kind is keras.layers.MultiHeadAttention:
        axes = operation.get_config()["attention_axes"]
        return axes is None or _is_off_samples(axes)
    if kind in _ALONG_AXIS:
        return _is_off_samples(operation.axis)
    return kind in _LAYERS


def _has_known_activations(layer: Any) -> bool:
    functions = (getattr(layer, name, None) for name in ("activation", "recurrent_activation"))
    return all(function is None or is_of_keras(function) for function in functions)


def _is_off_samples(axes: Any) -> bool:
    """Whether axes are surely not the first: of the negative ones, only the last is."""
    return all(axis > 0 or axis == -1 for axis in keras.tree.flatten(axes))
