"""Where the records of files begin and end, in bounded memory: a file of numbers on disk where there are many."""

from __future__ import annotations

import array
import os
from collections.abc import Iterable, Sequence

import numpy as np

from memfit.data import kept_files
from memfit.data.row_file import RowFile, RowWriter

RECORD = np.dtype([("file", "<i4"), ("length", "<u4"), ("start", "<i8")])
_IN_MEMORY = 2**18
_BUFFERED = 2**14


class RecordIndex:
    """File, start and length of every record: 16 bytes each, in a mapped file where there are more than a few.

    Args:
        files: Paths.
        records: The index itself: RECORD, shape (num_records,).
    """

    def __init__(self, files: Sequence[str], records: RowFile | np.ndarray) -> None:
        self.files = tuple(files)
        self._records = records

    def __len__(self) -> int:
        return len(self.records)

    @property
    def records(self) -> np.ndarray:
        return self._records.rows if isinstance(self._records, RowFile) else self._records

    @property
    def held_bytes(self) -> int:
        return 0 if isinstance(self._records, RowFile) else self._records.nbytes


def indexed(files: Sequence[str], spans: Iterable[tuple[int, int, int]], reading: str) -> RecordIndex:
    """The index of records.

    Args:
        files: Paths.
        spans: (place in ``files``, start, length) of every record, in order; asked for once, or not at all where the
            index of the same files was kept.
        reading: What makes a record, for the name under which the index is kept.
    """
    first, second = kept_files.names(files, reading)
    path = kept_files.folder("indices") / f"{first}-{second}.npy"
    if path.exists():
        return RecordIndex(files, RowFile(path))
    head = _Buffer()
    rest = iter(spans)
    for span in rest:
        head.add(span)
        if len(head) == _IN_MEMORY:
            break
    else:
        return RecordIndex(files, head.taken())
    with kept_files.draft(path) as draft, open(draft, "wb") as file:
        writer = RowWriter(file, RECORD)
        writer.append(head.taken())
        for span in rest:
            head.add(span)
            if len(head) == _BUFFERED:
                writer.append(head.taken())
        writer.append(head.taken())
        writer.finish()
    kept_files.remove_others(path, first)
    return RecordIndex(files, RowFile(path))


class RecordFiles:
    """Reads pieces of files, from several threads; a file is opened when it is first read.

    Args:
        files: Paths.
        most_open: Files that stay open.
    """

    def __init__(self, files: Sequence[str], most_open: int = 64) -> None:
        self._files = tuple(files)
        self._most_open = most_open
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_files": self._files, "_most_open": self._most_open, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, file: int, start: int, length: int) -> bytes:
        """Some bytes of a file; fewer where it has become shorter."""
        if len(self._files) > self._most_open or not hasattr(os, "pread"):
            with open(self._files[file], "rb") as opened:
                opened.seek(start)
                return opened.read(length)
        return os.pread(self._descriptor(file), length, start)

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            descriptor = os.open(self._files[file], os.O_RDONLY)
            if self._open.setdefault(file, descriptor) != descriptor:
                os.close(descriptor)
        return self._open[file]


class _Buffer:
    """Spans that are collected until they are written."""

    def __init__(self) -> None:
        self._numbers = array.array("q")

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def add(self, span: tuple[int, int, int]) -> None:
        self._numbers.extend(span)

    def taken(self) -> np.ndarray:
        numbers = np.array(self._numbers, np.int64).reshape(-1, 3)
        records = np.zeros(len(numbers), RECORD)
        records["file"], records["start"], records["length"] = numbers.T
        del self._numbers[:]
        return records
