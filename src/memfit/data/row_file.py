"""Rows of fixed size in one ``.npy`` file, written a few at a time and mapped for reading: a sample is one access."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from memfit.data import mapped_rows


class RowWriter:
    """Appends rows to an ``.npy`` file whose length is not known yet.

    Args:
        file: Open for writing, at its beginning.
        dtype: Of a row, structured or not.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     writer = RowWriter(file, np.dtype("int32"))
        ...     writer.append(np.arange(3, dtype="int32"))
        ...     writer.finish()
        ...     file.flush()
        ...     np.load(file.name).tolist()
        [0, 1, 2]
    """

    def __init__(self, file: BinaryIO | Any, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype
        self.num_rows = 0
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Writes rows of the dtype."""
        self._file.write(rows.tobytes())
        self.num_rows += len(rows)

    def finish(self) -> None:
        """Writes how many rows there are; numpy leaves room for that in the header."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.num_rows,)}
        np.lib.format.write_array_header_2_0(self._file, header)


class RowFile:
    """A memory map of an ``.npy`` file of rows, read in any order; it goes to another process as a path, not as its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self._mapped()
        self._asked = mapped_rows.of(self.rows)

    def _mapped(self) -> np.ndarray:
        with open(self.path, "rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            start = file.tell()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype, count=shape[0], offset=start)

    def ask(self, indices: np.ndarray) -> None:
        """Begins to read these rows, where memory does not hold them all: integers, shape (num_rows,)."""
        if self._asked is not None:
            self._asked.ask(indices)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
