"""Many names in order, in little more memory than the names take: a list of as many Python objects takes five times that."""

from __future__ import annotations

import array
import heapq
from collections.abc import Iterable, Iterator

import numpy as np

RUN = 2**13
"""Names that are Python objects at a time."""


class NameSorter:
    """Takes names, each with a number, in any order, and gives them sorted.

    Args:
        run: Names that are sorted at a time; the runs are merged.

    Example:
        >>> sorter = NameSorter()
        >>> sorter.add(b"tom.jpg", 30)
        >>> sorter.add(b"rex.jpg", 20)
        >>> list(sorter.sorted())
        [(b'rex.jpg', 20), (b'tom.jpg', 30)]
    """

    def __init__(self, run: int = RUN) -> None:
        self._run = run
        self._latest: list[bytes] = []
        self._runs: list[PackedNames] = []

    def add(self, name: bytes, number: int) -> None:
        """Takes a name without a zero byte, and a number from 0 below 2**63."""
        # Zero comes before every other byte: with the number behind it a name sorts as it does alone.
        self._latest.append(name + b"\0" + number.to_bytes(8, "big"))
        if len(self._latest) >= self._run:
            self._runs.append(PackedNames(sorted(self._latest)))
            self._latest.clear()

    def sorted(self) -> Iterator[tuple[bytes, int]]:
        """All of them in the order of their names."""
        for key in heapq.merge(*self._runs, sorted(self._latest)):
            yield key[:-9], int.from_bytes(key[-8:], "big")


class PackedNames:
    """Names in one run of bytes, by index.

    Args:
        names: In their order.

    Attributes:
        joined: uint8: all names in a row.
        ends: Where each ends, from 0: shape (num_names + 1,), uint32 where that counts the bytes, else int64.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        joined, lengths = bytearray(), array.array("I")
        for name in names:
            joined += name
            lengths.append(len(name))
        self.joined = np.frombuffer(joined, np.uint8)
        self.ends = _ends(np.frombuffer(lengths, np.uint32))

    @classmethod
    def of(cls, joined: np.ndarray, ends: np.ndarray) -> PackedNames:
        """Names that were packed before."""
        names = cls()
        names.joined, names.ends = joined, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.joined[self.ends[index] : self.ends[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    @property
    def num_bytes(self) -> int:
        """Bytes that they take."""
        return self.joined.nbytes + self.ends.nbytes

    def take(self, indices: np.ndarray) -> PackedNames:
        """Some of them: integers, shape (num_names,)."""
        starts, lengths = self.ends[indices], self.ends[1:][indices] - self.ends[indices]
        taken = PackedNames()
        taken.ends = _ends(lengths)
        taken.joined = np.empty(int(taken.ends[-1]), np.uint8)
        for first in range(0, len(indices), RUN):  # Every byte of a part has its place as a number of eight bytes.
            part = slice(first, first + RUN)
            start = taken.ends[first]
            places = np.arange(lengths[part].sum(dtype=np.int64))
            places += np.repeat(starts[part].astype(np.int64) - (taken.ends[:-1][part] - start), lengths[part])
            taken.joined[start : start + len(places)] = self.joined[places]
        return taken


def _ends(lengths: np.ndarray) -> np.ndarray:
    total = int(lengths.sum(dtype=np.int64))
    ends = np.zeros(len(lengths) + 1, np.uint32 if total < 2**32 else np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends
