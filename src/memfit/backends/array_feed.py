"""Arrays fed by index: batches gathered one at a time, in the order of ``model.fit``; no array is copied whole.

Keras turns a numpy array into one tensor on TensorFlow, about two further copies at the peak, and casts an array of
another float type as a whole on every backend. Here Keras' own adapter shuffles the *indices* - so the order is that of
``fit``, a full permutation an epoch - and each batch is gathered and cast from the array or memory map by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_data, keras_seam

COPY_LIMIT = 16 * 1024**2
"""Up to this many bytes arrays go the plain way: two copies of them are lost in the noise."""


def copied_bytes(structure: Any) -> int:
    """Bytes of the numpy arrays that ``fit`` would copy whole on this backend; 0 where some leaf is no numpy array."""
    leaves = keras_seam.flatten(structure)
    if not all(isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub" and leaf.ndim for leaf in leaves):
        return 0
    copies_all = keras_seam.framework() == "tensorflow"
    return sum(leaf.nbytes for leaf in leaves if copies_all or _fed_dtype(leaf) != leaf.dtype)


class ArrayFeed(keras_data.DataAdapter):
    """Numpy arrays or memory maps for ``fit`` and ``evaluate``, one batch at a time.

    Args:
        arrays: ``(x, y, sample_weight)``, nested structures of numpy arrays with one first axis; y and weights may be None.
        batch_size: Samples of a batch, or None for what ``fit`` takes then.
        steps: Batches of an epoch, which decide the batch size where that is None.
        shuffle: As in ``fit``: True, False or "batch".
    """

    def __init__(self, arrays: Any, *, batch_size: int | None, steps: int | None, shuffle: Any) -> None:
        self._arrays = tuple(arrays)
        self.num_samples = int(keras_seam.flatten(arrays)[0].shape[0])
        self._order = keras_data.array_order(self.num_samples, batch_size=batch_size, steps=steps, shuffle=shuffle)

    def gather(self, indices: Any) -> tuple[Any, ...]:
        """The batch of some samples: ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)`` of arrays of their own."""

        def take(array: np.ndarray) -> np.ndarray:
            rows = np.asarray(array[indices])
            return rows.astype(_fed_dtype(array), copy=False)

        x, y, sample_weight = (keras_seam.map_leaves(take, part) for part in self._arrays)
        if sample_weight is not None:
            return x, y, sample_weight
        return (x,) if y is None else (x, y)

    def get_numpy_iterator(self) -> Iterator[Any]:
        return (self.gather(indices) for indices in self._order.get_numpy_iterator())

    def get_jax_iterator(self) -> Iterator[Any]:
        return (self.gather(np.asarray(indices)) for indices in self._order.get_jax_iterator())

    def get_tf_dataset(self) -> Any:
        from memfit.backends.on_tensorflow import feed

        return feed.gathered(self._order.get_tf_dataset(), self.gather)

    def get_torch_dataloader(self) -> Any:
        from memfit.backends.on_torch import feed

        return feed.gathered(self._order.get_torch_dataloader(), self.gather)

    def on_epoch_begin(self) -> None:
        self._order.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._order.on_epoch_end()

    @property
    def num_batches(self) -> int:
        return int(self._order.num_batches)

    @property
    def batch_size(self) -> int:
        return int(self._order.batch_size)

    @property
    def has_partial_batch(self) -> bool:
        return bool(self._order.has_partial_batch)

    @property
    def partial_batch_size(self) -> int | None:
        return self._order.partial_batch_size


def _fed_dtype(array: np.ndarray) -> np.dtype[Any]:
    """The dtype that ``fit`` feeds: every float becomes Keras' float type."""
    return np.dtype(keras.config.floatx()) if array.dtype.kind == "f" else array.dtype
