"""How fast this device multiplies matrices: what the time of a step is reckoned from."""

from __future__ import annotations

import functools
import time

import keras
import numpy as np

_SIZES = (512, 1024, 2048, 4096)
_LONG_ENOUGH = 2e-3
_REPEATS = 3


@functools.cache
def matrix_rate() -> float:
    """Floating-point operations a second in a product of float32 matrices; measured once a process, in about 10 ms.

    Larger matrices are taken until a product is long enough to time: 3 to 12 MiB on a CPU, up to 200 MiB on a GPU.

    Example:
        >>> matrix_rate() > 1e6
        True
    """
    for size in _SIZES:
        seconds = _seconds(size)
        if seconds > _LONG_ENOUGH:
            break
    return 2.0 * size**3 / seconds


def _seconds(size: int) -> float:
    """The shortest of some products, the first of which only warms up."""
    matrix = keras.ops.ones((size, size), "float32")

    def product() -> float:
        start = time.perf_counter()
        # One number is read, so that an asynchronous device has finished.
        np.asarray(keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix)[0, 0]))
        return time.perf_counter() - start

    product()
    return min(product() for _ in range(_REPEATS))
