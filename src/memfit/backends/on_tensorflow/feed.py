"""TensorFlow: batches gathered by index inside a ``tf.data`` pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from memfit.backends import keras_data, keras_seam


def gathered(order: tf.data.Dataset, gather: Callable[[Any], Any]) -> tf.data.Dataset:
    """The data set of batches for a data set of their indices.

    Args:
        order: Yields int64 vectors, alone or in a tuple: the samples of each batch.
        gather: Makes a tuple of nested numpy arrays from such a vector.
    """
    import numpy as np

    example = gather(np.zeros((1,), "int64"))
    leaves = keras_seam.flatten(example)

    def load(indices: Any) -> list[Any]:
        return [np.ascontiguousarray(leaf) for leaf in keras_seam.flatten(gather(indices))]

    @tf.autograph.experimental.do_not_convert
    def batch(*order: tf.Tensor) -> Any:
        (indices,) = keras_seam.flatten(order)
        tensors = tf.numpy_function(load, [indices], [leaf.dtype for leaf in leaves], stateful=False)
        remaining = iter(tensors)

        def shaped(leaf: Any) -> tf.Tensor:
            tensor = next(remaining)
            tensor.set_shape((indices.shape[0], *leaf.shape[1:]))
            return tensor

        return keras_data.lists_to_tuples(keras_seam.map_leaves(shaped, example))

    # One batch ahead hides the gathering behind the step; more would only hold memory.
    return order.map(batch, num_parallel_calls=1).prefetch(1)
