"""Freed memory that the C library's heap keeps, given back before a step that would not fit beside it.

What lives on from step to step scatters over the heap, and its gaps stay resident: after some steps up to twice the memory of
the tensors was seen on PyTorch. Given back, they are faulted in again by the next step; where there is room nothing is given
back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras

from memfit.backends import host_allocator

_INTERVAL = 0.05
"""Seconds until the next look where there was room."""


class Trimming(keras.callbacks.Callback):
    """Looks before each batch.

    Args:
        held: Gives the bytes that this process holds.
        most_held: Gives the bytes beside which the next step fits; None where that is not known.
    """

    async_safe = True
    """Nothing is done at the end of a batch, so that Keras may go on calling the others as it likes."""

    def __init__(self, held: Callable[[], int], most_held: Callable[[], int | None]) -> None:
        super().__init__()
        self._held = held
        self._most_held = most_held
        self._next_look = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if time.monotonic() < self._next_look:
            return
        most = self._most_held()
        if most is not None and self._held() > most:
            host_allocator.trim()
        else:
            self._next_look = time.monotonic() + _INTERVAL
