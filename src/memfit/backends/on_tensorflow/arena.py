"""TensorFlow's best-fit allocator with coalescing, as arithmetic: what a sequence of tensors makes resident.

With oneDNN - the default on x86 - TensorFlow takes tensors on the CPU from an arena that only grows: regions of doubling
size, a chunk found by best fit, split where much would be left over, joined with free neighbours when it is freed. Nothing
goes back to the system, so the resident bytes are those of every page that any tensor ever lay on: more than the tensors
that live at one time, by what the order of sizes leaves unused. Small tensors lie on the C heap. Followed after
``bfc_allocator.cc`` and ``mkl_cpu_allocator.h`` of TensorFlow 2.21.
"""

from __future__ import annotations

import bisect
import dataclasses

from memfit import units

_ALIGNMENT = 256
_SMALL = 256 * units.KIB
_FIRST_REGION = 2 * units.MIB
_LARGEST_LEFTOVER = 128 * units.MIB
_PAGE = 64 * units.KIB

# What the C heap keeps for each byte of small tensors at their peak: measured on recurrent layers, whose tensors are small.
_HEAP_FACTOR = 1.6


@dataclasses.dataclass(slots=True)
class _Chunk:
    start: int
    size: int
    region: int
    before: _Chunk | None = None
    after: _Chunk | None = None
    free: bool = False


class Arena:
    """The arena: ``take`` and ``give`` chunks, and count the bytes.

    Attributes:
        live: Bytes of all tensors that are there.
        peak: The highest ``live`` so far.
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self._small = 0
        self._small_peak = 0
        self._next_region = _FIRST_REGION
        self._touched: list[bytearray] = []
        self._free: list[tuple[int, int, int]] = []
        self._at: dict[tuple[int, int], _Chunk] = {}

    @property
    def resident(self) -> int:
        """Bytes of all pages that a tensor has lain on."""
        return sum(pages.count(1) for pages in self._touched) * _PAGE + int(_HEAP_FACTOR * self._small_peak)

    def take(self, num_bytes: int) -> _Chunk | None:
        """A chunk for a tensor, whose bytes are written from its start on; None where it lies on the C heap."""
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        if num_bytes < _SMALL:
            self._small += num_bytes
            self._small_peak = max(self._small_peak, self._small)
            return None
        size = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        chunk = self._best_fit(size) or self._extended(size)
        if chunk.size >= 2 * size or chunk.size - size >= _LARGEST_LEFTOVER:
            self._split(chunk, size)
        chunk.free = False
        first, last = chunk.start // _PAGE, -(-(chunk.start + size) // _PAGE)
        self._touched[chunk.region][first:last] = b"\1" * (last - first)
        return chunk

    def give(self, chunk: _Chunk | None, num_bytes: int) -> None:
        """Frees what was taken for so many bytes."""
        self.live -= num_bytes
        if chunk is None:
            self._small -= num_bytes
            return
        for neighbour in (chunk.before, chunk.after):
            if neighbour is not None and neighbour.free:
                self._unlist(neighbour)
                chunk = self._joined(*sorted((chunk, neighbour), key=lambda part: part.start))
        self._list(chunk)

    def _best_fit(self, size: int) -> _Chunk | None:
        # Of chunks of one size the one at the lowest address is taken, which the system gave last.
        index = bisect.bisect_left(self._free, (size,))
        if index == len(self._free):
            return None
        _size, newness, start = self._free.pop(index)
        return self._at.pop((-newness, start))

    def _extended(self, size: int) -> _Chunk:
        grown = False
        while size > self._next_region:
            self._next_region *= 2
            grown = True
        chunk = _Chunk(0, self._next_region, len(self._touched))
        self._touched.append(bytearray(self._next_region // _PAGE))
        if not grown:
            self._next_region *= 2
        return chunk

    def _split(self, chunk: _Chunk, size: int) -> None:
        rest = _Chunk(chunk.start + size, chunk.size - size, chunk.region, chunk, chunk.after)
        if chunk.after is not None:
            chunk.after.before = rest
        chunk.size, chunk.after = size, rest
        self._list(rest)

    def _joined(self, first: _Chunk, second: _Chunk) -> _Chunk:
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        return first

    def _list(self, chunk: _Chunk) -> None:
        chunk.free = True
        bisect.insort(self._free, (chunk.size, -chunk.region, chunk.start))
        self._at[chunk.region, chunk.start] = chunk

    def _unlist(self, chunk: _Chunk) -> None:
        self._free.pop(bisect.bisect_left(self._free, (chunk.size, -chunk.region, chunk.start)))
        del self._at[chunk.region, chunk.start]
