"""Changes to embeddings: of lower rank, or hashed into two small tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.shrink.changes import Change, layers_in, replaced, weights_of
from memfit.shrink.selection import values

_FEWEST_NUMBERS = 4096
"""Smaller tables are not worth it."""


def all_of(model: Any) -> Iterator[Change]:
    """Every change of this family."""
    for layer in layers_in(model):
        plain = type(layer).__name__ == "Embedding" and not getattr(layer, "lora_enabled", False)
        if not plain or layer.input_dim * layer.output_dim < _FEWEST_NUMBERS:
            continue
        if layer.output_dim >= 8:
            yield _low_rank(model, layer)
        if not layer.mask_zero:
            yield _hashed(model, layer)


def _low_rank(model: Any, layer: Any) -> Change:
    rank = layer.output_dim // 4

    def narrow(old: Any) -> Any:
        table = keras.layers.Embedding(
            old.input_dim, rank, mask_zero=old.mask_zero, name="table", dtype=old.dtype_policy
        )
        wide = keras.layers.Dense(old.output_dim, use_bias=False, name="widen", dtype=old.dtype_policy)
        return keras.Sequential([table, wide], name=old.name, trainable=old.trainable)

    def carry(old: Any, new: Any) -> None:
        left, strengths, right = np.linalg.svd(values(old.embeddings).astype("float32"), full_matrices=False)
        root = np.sqrt(strengths[:rank])
        table, wide = new.layers
        _assign(table.embeddings, left[:, :rank] * root)
        _assign(wide.kernel, root[:, None] * right[:rank])

    return Change(
        "low-rank embedding",
        f"{layer.name} as a table of {rank} columns and a matrix to {layer.output_dim}",
        "the nearest matrix of that rank; fine-tune afterwards",
        weights_of(layer) * 3 // 4,
        lambda: replaced(model, {id(layer): narrow}, carry),
    )


def _assign(variable: Any, value: np.ndarray) -> None:
    """A vocabulary smaller than the rank leaves columns that nothing is known of: zeros."""
    full = np.zeros(tuple(variable.shape), "float32")
    full[tuple(slice(0, size) for size in value.shape)] = value
    variable.assign(full)


def _hashed(model: Any, layer: Any) -> Change:
    """Two tables, of remainders and quotients, whose rows add up (Shi et al., 2020)."""
    base = math.ceil(math.sqrt(layer.input_dim))
    high = math.ceil(layer.input_dim / base)

    def two_tables(old: Any) -> Any:
        words = keras.Input(batch_shape=old.input.shape, dtype="int32")
        low_rows = keras.layers.Embedding(base, old.output_dim, name="remainders", dtype=old.dtype_policy)
        high_rows = keras.layers.Embedding(high, old.output_dim, name="quotients", dtype=old.dtype_policy)
        both = low_rows(keras.ops.mod(words, base)) + high_rows(keras.ops.floor_divide(words, base))
        return keras.Model(words, both, name=old.name, trainable=old.trainable)

    def carry(old: Any, new: Any) -> None:
        table = values(old.embeddings).astype("float32")
        full = np.concatenate([table, np.broadcast_to(table.mean(0), (base * high - len(table), table.shape[1]))])
        grid = full.reshape(high, base, -1)
        # The nearest sum of a row and a column.
        new.get_layer("quotients").embeddings.assign(grid.mean(1))
        new.get_layer("remainders").embeddings.assign((grid - grid.mean(1, keepdims=True)).mean(0))

    return Change(
        "hashed embedding",
        f"{layer.name} as the sum of two tables of {base} and {high} rows instead of one of {layer.input_dim}",
        "the nearest sum of two tables, which for a trained embedding is far; train it again",
        weights_of(layer),
        lambda: replaced(model, {id(layer): two_tables}, carry),
    )
