"""Memory that tensors have been promised but do not take yet.

A fresh zero tensor on a CPU is memory that the kernel hands out page by page as it is written, so the slots of an optimizer
that has not run show up in the process only with the first update.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any


def missing_bytes(tensors: list[Any]) -> int:
    """Bytes of CPU tensors that are not resident; 0 where the system does not say."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mincore"):
        return 0
    return sum(_missing(libc, tensor) for tensor in tensors if tensor.device.type == "cpu")


def _missing(libc: Any, tensor: Any) -> int:
    page = mmap.PAGESIZE
    start = tensor.data_ptr() // page * page
    length = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
    if tensor.numel() == 0:
        return 0
    num_pages = -(-length // page)
    present = (ctypes.c_ubyte * num_pages)()
    if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), present) != 0:
        return 0
    return page * (num_pages - sum(flag & 1 for flag in bytes(present)))
