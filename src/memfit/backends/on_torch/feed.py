"""PyTorch: batches gathered by index from the order of Keras' own data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_seam


def gathered(order: Any, gather: Callable[[Any], Any]) -> Any:
    """The batches for a loader of their indices."""
    return _Gathered(order, gather)


class _Gathered:
    def __init__(self, order: Any, gather: Callable[[Any], Any]) -> None:
        self._order = order
        self._gather = gather

    def __iter__(self) -> Iterator[Any]:
        # iter() at once, not at the first batch: a loader draws a random number when its iterator is made.
        return map(self._batch, iter(self._order))

    def _batch(self, indices: Any) -> Any:
        batch = self._gather(np.asarray(keras_seam.flatten(indices)[0].cpu()))
        return keras_seam.map_leaves(keras.ops.convert_to_tensor, batch)

    def __len__(self) -> int:
        return len(self._order)
