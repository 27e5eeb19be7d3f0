"""JAX: variables updated chunk by chunk, and emptied while another optimizer stands in for theirs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from memfit.backends import keras_optimizer, keras_seam
from memfit.backends.protocol import Chunks, ChunkUpdate


def update_in_chunks(update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> None:
    """A loop that XLA runs in the variables' own buffers where they are donated, as in the train step they are."""
    values = [variable.value for variable in chunks.variables]
    if chunks.strides is None:
        new = update(gradient, gradient * gradient, values)
    else:
        last = chunks.number - 1
        new = jax.lax.fori_loop(0, last, lambda k, held: _chunk(update, gradient, held, (k, chunks)), values)
        new = _chunk(update, gradient, new, (last, chunks))
    for variable, value in zip(chunks.variables, new, strict=True):
        variable.assign(value)


def _chunk(update: ChunkUpdate, gradient: Any, values: list[Any], which: tuple[Any, Chunks]) -> list[Any]:
    number, chunks = which
    assert chunks.strides is not None

    def part(array: Any, stride: int) -> Any:
        size = min(stride, array.shape[0] - number * stride) if isinstance(number, int) else stride
        return jax.lax.dynamic_slice_in_dim(array, number * stride, size)

    piece = part(gradient, chunks.strides[0])
    new = update(piece, piece * piece, [part(v, stride) for v, stride in zip(values, chunks.strides, strict=True)])
    return [
        jax.lax.dynamic_update_slice_in_dim(value, one, number * stride, axis=0)
        for value, one, stride in zip(values, new, chunks.strides, strict=True)
    ]


def hold(variable: Any, value: Any) -> None:
    """Replaces what a variable holds by an array of any shape."""
    # A copy: on a CPU JAX would read the caller's own memory.
    array = jax.numpy.array(np.asarray(value), dtype=keras_seam.dtype_name(variable), copy=True)
    keras_optimizer.hold(variable, array)
