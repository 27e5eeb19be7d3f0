"""What the C library's allocator keeps of freed memory, given back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit.units import MIB

if sys.platform == "linux":
    import resource

LARGEST_HEAP_BLOCK = 32 * MIB
"""glibc never keeps larger blocks on its heap."""

LARGE_BLOCK = MIB
"""Blocks of this size and more get pages of their own after ``map_large_blocks``."""

_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1

_KEPT_TOP = 2 * LARGEST_HEAP_BLOCK
"""Free bytes at the top of the heap that are not given back: what glibc sets beside blocks of 32 MiB. Setting the other
threshold alone would leave this one at 128 KiB, and every step of many small tensors would give pages back and fault them in
again: an LSTM on PyTorch was seen to take three times as long."""


def trim() -> None:
    """Returns the free pages of the C heap to the system; does nothing where the C library is not glibc.

    Frameworks free their tensors into glibc's heap, which keeps them resident until its top is free. ``malloc_trim`` gives
    back every free page in between.
    """
    malloc_trim = _function("malloc_trim", ctypes.c_size_t)
    if malloc_trim is not None:
        malloc_trim(0)


def free_bytes() -> int | None:
    """Bytes of the C heap that are free, resident or not; None where the C library does not say (glibc does since 2.33)."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _HeapInfo
    return int(mallinfo2().fordblks)


class _HeapInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def map_large_blocks(least: int = LARGE_BLOCK, *, close_gaps: bool = False) -> Callable[[], None]:
    """From now on, blocks of ``least`` bytes and more are pages of their own, which go back to the system when they are freed.

    glibc starts that way, but learns from the first large block that is freed to keep blocks of up to 32 MiB on its heap.
    Tensors of that size leave gaps there that nothing fits: up to twice the memory of the tensors was seen. Speed hardly
    differs.

    Args:
        least: Bytes of the smallest such block.
        close_gaps: Whether gaps on the heap that are large enough are closed: glibc takes pages only where it finds none. To be
            asked for only where no thread but this one takes memory meanwhile.

    Returns:
        A function that goes back to 32 MiB, where glibc would have ended up by itself.
    """
    mallopt = _function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None:
        return lambda: None
    mallopt(_M_TRIM_THRESHOLD, _KEPT_TOP)
    mallopt(_M_MMAP_THRESHOLD, least)
    open_gaps = closed_gaps(least) if close_gaps else None

    def restore() -> None:
        if open_gaps is not None:
            open_gaps()
        mallopt(_M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)

    return restore


def closed_gaps(least: int, *, open_from: int | None = None) -> Callable[[], None]:
    """Takes the heap's gaps of so many bytes and more, without a page of memory behind them, until the returned function.

    While they are looked for, no larger mapping can be made. A thread whose allocation has failed takes from another heap from
    then on, and comes back to its first for what finds no mapping.

    Args:
        least: Bytes of the smallest gap that is taken.
        open_from: Bytes from which gaps are left, 32 MiB at most; None for none.
    """
    malloc, free = _function("malloc", ctypes.c_size_t), _function("free", ctypes.c_void_p)
    if malloc is None or free is None or sys.platform != "linux":
        return lambda: None
    trim()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    no_more = mapped_bytes() + least // 2
    if (soft != resource.RLIM_INFINITY and soft < no_more) or (hard != resource.RLIM_INFINITY and hard < no_more):
        return lambda: None
    taken: dict[int, int] = {}  # sizes by address
    size = LARGEST_HEAP_BLOCK
    resource.setrlimit(resource.RLIMIT_DATA, (no_more, hard))
    try:
        while size >= least:
            block = malloc(size)
            if block:
                taken[block] = size
            else:
                size //= 2
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def opened(least: int = 0) -> None:
        for block in [block for block, size in taken.items() if size >= least]:
            free(block)
            del taken[block]

    if open_from is not None:
        opened(open_from)
    return opened


def mapped_bytes() -> int:
    """Private, writable address space of this process, on Linux."""
    return int(Path("/proc/self/statm").read_bytes().split()[5]) * resource.getpagesize()


_HOLDING = ("malloc", "free")
"""Functions that no other Python thread runs beside."""


@functools.cache
def _function(name: str, *argument_types: Any) -> Callable[..., int] | None:
    """A function of glibc, or None: musl and macOS have no such function, Windows no handle without a name."""
    try:
        found = getattr((ctypes.PyDLL if name in _HOLDING else ctypes.CDLL)(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes, found.restype = list(argument_types), ctypes.c_void_p if name == "malloc" else ctypes.c_int
    return lambda *arguments: int(found(*arguments) or 0)
