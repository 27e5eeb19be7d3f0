"""How fast this device multiplies matrices, and the system gives out memory: what the time of a step is reckoned from."""

from __future__ import annotations

import functools
import mmap
import time

import keras
import numpy as np

from memfit.units import MIB

_SIZES = (512, 1024, 2048, 4096)
_LONG_ENOUGH = 5e-3
_REPEATS = 8
"""Of three products of 2 ms, the shortest was up to half as fast as in the next process."""
_TOUCHED = 16 * MIB
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""As allocators ask for memory; Windows has no other kind."""


@functools.cache
def matrix_rate() -> float:
    """Floating-point operations a second in a product of float32 matrices; measured once a process, in about 0.1 s.

    Larger matrices are taken until a product is long enough to time: 8 to 32 MiB on a CPU, up to 200 MiB on a GPU.

    Example:
        >>> matrix_rate() > 1e6
        True
    """
    for size in _SIZES:
        seconds = _seconds(size)
        if seconds > _LONG_ENOUGH:
            break
    return 2.0 * size**3 / seconds


@functools.cache
def page_seconds() -> float:
    """Seconds that the first write into fresh memory takes, a byte; measured once a process, in about 40 ms.

    Example:
        >>> 0.0 < page_seconds() < 1e-6
        True
    """

    def touched() -> float:
        with mmap.mmap(-1, _TOUCHED, **_PRIVATE) as fresh:
            pages = np.ndarray((_TOUCHED // mmap.PAGESIZE, mmap.PAGESIZE), np.uint8, buffer=fresh)[:, 0]
            start = time.perf_counter()
            pages[:] = 1
            seconds = time.perf_counter() - start
            del pages
            return seconds

    return min(touched() for _ in range(_REPEATS)) / _TOUCHED


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
