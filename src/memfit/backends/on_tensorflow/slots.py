"""TensorFlow: variables updated in place, chunk by chunk, and emptied while another optimizer stands in for theirs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from memfit.backends.protocol import Chunks, ChunkUpdate


def update_in_chunks(update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> Any:
    """One chunk after the other; in a graph nothing else would keep TensorFlow from running all of them side by side.

    A sparse gradient (``IndexedSlices``) is added up for each chunk. As in Keras' own optimizers, squares are of each slice
    by itself.
    """
    variables = [v.value if isinstance(v, keras.Variable) else v for v in chunks.variables]
    for number in range(chunks.number):
        with tf.control_dependencies([] if after is None or tf.executing_eagerly() else [after]):
            where = chunks.slices(number)
            values = [v.read_value() if part is None else v[part] for v, part in zip(variables, where, strict=True)]
            new = update(*_rows(gradient, where[0], variables[0]), values)
            written = [
                v.assign(value) if part is None else v[part].assign(value)
                for v, part, value in zip(variables, where, new, strict=True)
            ]
            after = None if tf.executing_eagerly() else tf.group(*(getattr(one, "op", one) for one in written))
    return after


def _rows(gradient: Any, rows: slice | None, variable: Any) -> tuple[Any, Any]:
    """Some rows of a gradient and of its squares, dense."""
    if not isinstance(gradient, tf.IndexedSlices):
        # The copy of the handle is made when it is this chunk's turn, and its rows are taken after it.
        part = gradient if rows is None else tf.identity(gradient)[rows]
        return part, tf.square(part)
    start, stop = (0, variable.shape[0]) if rows is None else (rows.start, rows.stop)
    inside = (gradient.indices >= start) & (gradient.indices < stop)
    # Numbers below zero are left out of the sum.
    segments = tf.where(inside, gradient.indices - start, -1)

    def added(values: Any) -> Any:
        return tf.ensure_shape(
            tf.math.unsorted_segment_sum(values, segments, stop - start), (stop - start, *variable.shape[1:])
        )

    return added(gradient.values), added(tf.square(gradient.values))


def hold(variable: Any, value: Any) -> None:
    """Replaces what a variable holds by an array of any shape; traced graphs go on reading the same variable."""
    tensor = tf.cast(tf.convert_to_tensor(value), variable.value.dtype)
    tf.raw_ops.AssignVariableOp(resource=variable.value.handle, value=tensor, validate_shape=False)
