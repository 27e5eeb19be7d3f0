"""What a call of a layer retains for its backward pass and what computing it again costs, from shapes alone.

An estimate to choose by, right in order and proportion; the analysis of the real step judges what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from memfit.profiling import layers as layer_bytes
from memfit.records import TensorSpec

Shapes = Sequence[tuple[tuple[int, ...], str]]

_BALANCE = 8
"""Floating-point operations that a processor does while it moves a byte."""

_HALVES = 2
_TWICE = (keras.layers.LayerNormalization, keras.layers.GroupNormalization, keras.layers.RMSNormalization)
_IN_PLACE = ("linear", "relu", "relu6", "sigmoid", "tanh", "softmax")
_GATES = 12
_SCORES = 3


def nbytes(shapes: Shapes) -> int:
    """Bytes of some tensors."""
    return layer_bytes.tensor_bytes([TensorSpec(shape, dtype) for shape, dtype in shapes])


def retained_bytes(called: Any, inputs: Shapes, outputs: Shapes) -> int:
    """What a layer that calls no other keeps: its outputs, and what lies between them and its inputs."""
    out = nbytes(outputs)
    if isinstance(called, keras.layers.RNN) and inputs and len(inputs[0][0]) == 3:
        states = called.state_size if isinstance(called.state_size, (list, tuple)) else [called.state_size]
        (batch, steps, _), dtype = inputs[0]
        return out + nbytes([((batch, steps, _GATES * sum(states)), dtype)])
    if isinstance(called, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
        return out + _SCORES * nbytes([(_scores(called, inputs), outputs[0][1])])
    if isinstance(called, _TWICE):
        return 2 * out
    if isinstance(called, keras.layers.Dropout):
        return out + out // 4
    activation = getattr(called, "activation", None)
    if activation is not None and getattr(activation, "__name__", "") not in _IN_PLACE:
        return 2 * out
    return out


def computation(called: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Floating-point operations of a forward pass, moving its bytes included at their price."""
    moved = _BALANCE * (nbytes(inputs) + nbytes(outputs))
    if isinstance(called, keras.layers.Embedding):
        return float(moved)
    positions = min((math.prod(shape[:-1]) for shape, _ in (*inputs[:1], *outputs[:1])), default=0)
    if isinstance(called, keras.layers.RNN):
        positions = math.prod(inputs[0][0][:-1])
    kernels = sum(math.prod(w.shape) for w in getattr(called, "weights", ()) if len(w.shape) >= _HALVES)
    flops = 2.0 * kernels * positions
    if isinstance(called, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
        flops += 4.0 * math.prod(_scores(called, inputs)) * _key_size(called)
    return flops + moved


def rounds(called: Any, inputs: Shapes) -> int:
    """How often a layer's own operations are issued in a forward pass: once, or once a time step."""
    recurrent = isinstance(called, keras.layers.RNN) and inputs and len(inputs[0][0]) > _HALVES
    return int(inputs[0][0][1]) if recurrent else 1


def _scores(attention: Any, inputs: Shapes) -> tuple[int, ...]:
    """The shape of the products of queries and keys."""
    (batch, *queries, _), _ = inputs[0]
    keys = inputs[1][0][1:-1] if len(inputs) > 1 else queries
    heads = int(getattr(attention, "num_heads", 0) or getattr(attention, "num_query_heads", 1))
    return int(batch), heads, math.prod(queries), math.prod(keys)


def _key_size(attention: Any) -> int:
    return int(getattr(attention, "key_dim", 0) or getattr(attention, "head_dim", 1))
