"""Bytes of every layer's outputs, from shapes alone: a symbolic forward pass that computes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memfit.backends import keras_seam
from memfit.records import Consumer, TensorSpec

_SYMBOLIC_SAMPLES = 2


def layer_outputs(model: Any, x: Any) -> tuple[Consumer, ...]:
    """Each layer with the bytes of its outputs for a batch, largest first.

    A recurrent layer counts what its steps keep for the backward pass, not only what it returns.

    Args:
        model: A Keras model.
        x: Nested TensorSpec of the model's inputs at the full batch size.

    Raises:
        ValueError: The inputs do not fit the model.
    """
    batch_size = keras_seam.flatten(x)[0].shape[0]
    small = keras_seam.map_leaves(lambda spec: TensorSpec((_SYMBOLIC_SAMPLES, *spec.shape[1:]), spec.dtype), x)
    found: dict[tuple[str, str], int] = {}
    for layer, shapes in keras_seam.symbolic_outputs(model, small):
        size = np.dtype(_storage(layer.compute_dtype)).itemsize
        key = (layer.path or layer.name, type(layer).__name__)
        found[key] = found.get(key, 0) + sum(map(math.prod, shapes)) * size * batch_size // _SYMBOLIC_SAMPLES
    consumers = (Consumer(path, kind, num_bytes) for (path, kind), num_bytes in found.items())
    return tuple(sorted(consumers, key=lambda consumer: -consumer.bytes))


def _storage(dtype: str) -> str:
    """A numpy dtype of the width of a Keras dtype."""
    return {"bfloat16": "float16", "float8_e4m3fn": "int8", "float8_e5m2": "int8", "int4": "int8"}.get(dtype, dtype)


def tensor_bytes(structure: Any) -> int:
    """Bytes of a nested structure of TensorSpec."""
    return sum(
        math.prod(spec.shape) * np.dtype(_storage(spec.dtype)).itemsize
        for spec in keras_seam.flatten(structure)
        if spec.dtype != "string"
    )


def variable_bytes(variables: Any) -> int:
    """Bytes of Keras variables."""
    return sum(math.prod(v.shape) * np.dtype(_storage(keras_seam.dtype_name(v))).itemsize for v in variables)
