"""What the C library's allocator keeps of freed memory, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
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
        close_gaps: Whether gaps on the heap that are large enough are closed: glibc takes pages only where it finds none.
            Allocations of other threads may fail meanwhile.

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


def closed_gaps(least: int, *, open_from: int | None = None, left: bool = True) -> Callable[[], None]:
    """Takes the heap's gaps of so many bytes and more, without a page of memory behind them, until the returned function.

    Args:
        least: Bytes of the smallest gap that is taken.
        open_from: Bytes from which gaps are left open, 32 MiB at most; None for none.
        left: Whether also those of a heap that this thread has left are taken. It comes back to them where nothing can be
            mapped, which then holds for all threads while gaps are looked for. A thread whose allocation fails leaves its
            heap for another.
    """
    malloc, free = _function("malloc", ctypes.c_size_t), _function("free", ctypes.c_void_p)
    if malloc is None or free is None or sys.platform != "linux":
        return lambda: None
    trim()
    taken: dict[int, int] = {}  # sizes by address
    size = LARGEST_HEAP_BLOCK
    with _no_mapping(least // 2) if left else contextlib.nullcontext():
        while size >= least:
            before = mapped_bytes()
            block = malloc(size)
            if block and mapped_bytes() <= before:
                taken[block] = size
                continue
            if block:
                free(block)
            size //= 2

    def opened(least: int = 0) -> None:
        for block in [block for block, size in taken.items() if size >= least]:
            free(block)
            del taken[block]

    if open_from is not None:
        opened(open_from)
    return opened


@contextlib.contextmanager
def _no_mapping(spare: int) -> Iterator[None]:
    """Inside, no thread can map more than so many bytes, nor more than it could before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = [limit for limit in (mapped_bytes() + spare, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def mapped_bytes() -> int:
    """Private, writable address space of this process, on Linux."""
    with open("/proc/self/statm", "rb", buffering=0) as statm:
        return int(statm.read().split()[5]) * resource.getpagesize()


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
