"""What the C library's allocator keeps of freed memory, given back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Returns the free pages of the C heap to the system; does nothing where the C library is not glibc.

    Frameworks free their tensors into glibc's heap, which keeps them resident until its top is free. ``malloc_trim`` gives
    back every free page in between.
    """
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (
        AttributeError,
        OSError,
        TypeError,
    ):  # musl and macOS have no such function, Windows no handle without a name
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda pad: int(found(pad))
