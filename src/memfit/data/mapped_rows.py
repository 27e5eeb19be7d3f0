"""Rows of a mapped file, read in any order: the system reads them, and not what lies around them.

Left alone it reads some 32 pages for each row and drops others for them where memory does not hold the file: 110 rows a second
instead of 17,000 were measured. It is told that any page may be next, and which ones are wanted, all those of a batch at once,
so that the disk works on many: 4 to 15 times as fast as one row after the other. Where pages are there, asking costs 1 to 3
microseconds a row: then it is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import weakref
from typing import Any

import numpy as np

from memfit.budgeting import host

_SHARE_OF_FREE = 0.5
"""Of the free memory: a larger file is taken for one that memory will not hold, because training takes its part, too."""

_ASKED = 64
"""Batches that are asked for, until one is not, to see whether its rows are there by themselves."""

_WAITED = 8
"""Pages that the process waited for since the last batch, which say that rows are not there."""


class MappedRows:
    """Where the rows of an array lie in a mapped file. What the system is told of the mapping is taken back with the last one.

    Args:
        rows: An array whose rows lie one behind the other in the mapping.
        mapping: Of the file.
    """

    def __init__(self, rows: np.ndarray, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self._advice = _advice(mapping)
        self._first = _address(rows) - _address(np.frombuffer(mapping, np.uint8))
        self._stride = rows.strides[0]
        self._row_bytes = _row_bytes(rows)
        self._left = _ASKED
        self._faults = _major_faults()

    def ask(self, indices: np.ndarray) -> None:
        """Has the system begin to read these rows, where rows were not there of late: integers, shape (num_rows,)."""
        faults = _major_faults()
        waited, self._faults = faults - self._faults, faults
        if self._left == 0 and waited >= _WAITED:
            self._left = _ASKED
        if self._left == 0:
            return
        self._left -= 1
        self._request(indices)

    def _request(self, indices: np.ndarray) -> None:
        starts = np.sort(self._first + np.asarray(indices, np.int64) * self._stride)
        first, last = starts // mmap.PAGESIZE, (starts + self._row_bytes - 1) // mmap.PAGESIZE
        # Rows that share a page, or lie in neighbouring ones, are one request.
        begins = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
        begins, ends = np.r_[0, begins], np.r_[begins, len(starts)] - 1
        for begin, end in zip(first[begins].tolist(), last[ends].tolist(), strict=True):
            self._mapping.madvise(mmap.MADV_WILLNEED, begin * mmap.PAGESIZE, (end - begin + 1) * mmap.PAGESIZE)


def of(rows: np.ndarray) -> MappedRows | None:
    """The rows of an array in a mapped file, where memory does not hold the file; None for any other array."""
    mapping = _mapping(rows)
    if mapping is None or not hasattr(mapping, "madvise") or not rows.size:
        return None
    lie_apart = 0 < _row_bytes(rows) <= rows.strides[0]
    return MappedRows(rows, mapping) if lie_apart and len(mapping) > _SHARE_OF_FREE * host.free_bytes() else None


class _Advice:
    """The system knows that pages of a mapping are read in any order for as long as this lives."""

    def __init__(self, mapping: mmap.mmap) -> None:
        mapping.madvise(mmap.MADV_RANDOM)
        weakref.finalize(self, _take_back, mapping).atexit = False


_given: weakref.WeakValueDictionary[int, _Advice] = weakref.WeakValueDictionary()


def _advice(mapping: mmap.mmap) -> _Advice:
    # By its number, which is no other's for as long as the advice lives, as that holds the mapping.
    found = _given.get(id(mapping))
    if found is None:
        found = _given[id(mapping)] = _Advice(mapping)
    return found


def _major_faults() -> int:
    """Pages of files that this process waited for so far."""
    return importlib.import_module("resource").getrusage(0).ru_majflt  # RUSAGE_SELF; Windows has no such module.


def _take_back(mapping: mmap.mmap) -> None:
    with contextlib.suppress(ValueError):  # It was closed.
        mapping.madvise(mmap.MADV_NORMAL)


def _mapping(array: Any) -> mmap.mmap | None:
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return None


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _row_bytes(rows: np.ndarray) -> int:
    """From the beginning of a row to its end; 0 where it runs backwards."""
    steps = list(zip(rows.shape[1:], rows.strides[1:], strict=True))
    if any(step < 0 for _, step in steps):
        return 0
    return rows.itemsize + sum((length - 1) * step for length, step in steps)
