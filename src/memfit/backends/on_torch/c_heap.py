"""The C library's heap as small tensors fill it: how far it reaches, the gaps between the tensors included.

Measured with ``mallinfo2`` on recurrent models: what was in use were the tensors' bytes and about a tenth
more, and what the process held beside that were free blocks below the heap's top. glibc gives back the top alone.
"""

from __future__ import annotations

import bisect

_OBJECTS = 1024
"""A block beside each tensor's own: the tensor object, the autograd node and what that keeps. It bites into gaps."""
_GRAIN = 64
_ALIGNING = 96
"""What ``memalign`` wants free beside an aligned block, so that a tensor does not fit where its like has been."""


class CHeap:
    """Blocks placed as glibc places them: into the smallest gap that fits, or on top.

    Attributes:
        top: Bytes from the heap's begin to the end of its last block.
    """

    def __init__(self) -> None:
        self.top = 0
        self._gaps: list[tuple[int, int]] = []  # (size, start), sorted
        self._sizes: dict[int, int] = {}  # of gaps, by start
        self._starts: dict[int, int] = {}  # of gaps, by end

    def take(self, num_bytes: int) -> tuple[tuple[int, int], ...]:
        """Places the blocks of a tensor; returns their starts and ends."""
        size = -(-num_bytes // _GRAIN) * _GRAIN + _GRAIN
        return self._place(size, _ALIGNING), self._place(_OBJECTS, 0)

    def give(self, blocks: tuple[tuple[int, int], ...]) -> None:
        """Frees blocks, and joins each with the gaps on both sides or with what is above the top."""
        for start, end in blocks:
            self._free(start, end)

    def _place(self, size: int, beside: int) -> tuple[int, int]:
        place = bisect.bisect_left(self._gaps, (size + beside, 0))
        if place == len(self._gaps):
            start, self.top = self.top, self.top + size
            return start, self.top
        room, start = self._gaps[place]
        self._close(start, room)
        if room > size:
            self._open(start + size, room - size)
        return start, start + size

    def _free(self, start: int, end: int) -> None:
        if start in self._starts:
            before = self._starts[start]
            self._close(before, start - before)
            start = before
        if end in self._sizes:
            size = self._sizes[end]
            self._close(end, size)
            end += size
        if end == self.top:
            self.top = start
        else:
            self._open(start, end - start)

    def _open(self, start: int, size: int) -> None:
        bisect.insort(self._gaps, (size, start))
        self._sizes[start] = size
        self._starts[start + size] = start

    def _close(self, start: int, size: int) -> None:
        del self._gaps[bisect.bisect_left(self._gaps, (size, start))]
        del self._sizes[start], self._starts[start + size]
