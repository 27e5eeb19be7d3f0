"""How fast this device multiplies matrices, and the system gives out memory: what the time of a step is reckoned from."""

from __future__ import annotations

import functools
import mmap
import time

import keras
import numpy as np

from memfit import backends
from memfit.units import MIB

_SIZE = 512
_PRODUCTS = (1, 4, 16, 64)
_SIZES_ON_DEVICE = (512, 1024, 2048, 4096)
_LONG_ENOUGH = 4e-3
_REPEATS = 8
"""Of three products of 2 ms, the shortest was up to half as fast as in the next process."""
_TOUCHED = 16 * MIB
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""As allocators ask for memory; Windows has no other kind."""


@functools.cache
def matrix_rate() -> float:
    """Floating-point operations a second in a product of float32 matrices; measured once a process, in about 0.1 s.

    Products go on until they are long enough to time. On a CPU more of them do, in a few MiB: larger ones are about as fast,
    but take tens of MiB, which the framework keeps. On a GPU, which small ones do not fill, larger ones do, in up to 200 MiB.

    Example:
        >>> matrix_rate() > 1e6
        True
    """
    on_device = backends.current().device_memory() is not None
    rounds = [(size, 1) for size in _SIZES_ON_DEVICE] if on_device else [(_SIZE, products) for products in _PRODUCTS]
    for size, products in rounds:
        seconds = _seconds(size, products)
        if seconds > _LONG_ENOUGH:
            break
    return 2.0 * size**3 * products / seconds


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


def _seconds(size: int, products: int) -> float:
    """The shortest time of so many products, each of the one before; the first time only warms up."""
    matrix = keras.ops.full((size, size), 1.0 / size, "float32")  # its own square

    def multiplied() -> float:
        start, found = time.perf_counter(), matrix
        for _ in range(products):
            found = keras.ops.matmul(found, matrix)
        # One number is read, so that an asynchronous device has finished.
        np.asarray(keras.ops.convert_to_numpy(found[0, 0]))
        return time.perf_counter() - start

    multiplied()
    return min(multiplied() for _ in range(_REPEATS))
