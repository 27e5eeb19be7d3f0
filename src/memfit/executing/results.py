"""Rows that arrive batch by batch, each kept once: in one array that grows, or in a ``.npy`` file that is mapped at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from memfit.errors import ArgumentError

_FIRST_ROWS = 1024
_GROWTH = 8
"""An array of unknown length grows by an eighth: what it grows by is touched, and may stay unused."""


class Rows:
    """The rows of one output.

    Args:
        path: The ``.npy`` to write; None to hold the rows in memory, and in a file without a name from ``limit_bytes`` on.
        num_rows: How many will come; None where that is not known.
        limit_bytes: What may be held in memory.
        name: What the rows are, for errors.

    Example:
        >>> rows = Rows(None, num_rows=3, limit_bytes=2**20)
        >>> rows.append(np.ones((2, 4), "float32")), rows.append(np.zeros((1, 4), "float32"))
        (None, None)
        >>> rows.finish().shape
        (3, 4)
    """

    def __init__(self, path: Path | None, *, num_rows: int | None, limit_bytes: int, name: str = "output") -> None:
        self._path = path
        self._expected = num_rows
        self._limit = limit_bytes
        self._name = name
        self._array: np.ndarray | None = None
        self._file: _File | None = None
        self.num_rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Takes the rows of one batch.

        Raises:
            ArgumentError: They have another shape or dtype than those before.
            OSError: The disk is full.
        """
        if self._array is None and self._file is None:
            self._begin(rows)
        self._check(rows)
        after = self.num_rows + len(rows)
        if self._array is not None and after > len(self._array):
            self._grow(after)
        if self._file is not None:
            self._file.write(rows)
        elif self._array is not None:
            self._array[self.num_rows : after] = rows
        self.num_rows = after

    def finish(self) -> np.ndarray:
        """The rows: an array, or a memory map of the file. A file with a name is there from now on, whole."""
        if self._file is not None:
            return self._file.finish(self.num_rows)
        assert self._array is not None, "no row came"
        return self._array if self.num_rows == len(self._array) else self._array[: self.num_rows]

    def abandon(self) -> None:
        """Leaves no file behind; what was finished stays."""
        self._array = None
        if self._file is not None:
            self._file.abandon()

    def _begin(self, rows: np.ndarray) -> None:
        if not rows.ndim:
            raise ArgumentError(
                f"Predictions are kept by their first axis. Received: {self._name} is one number a batch."
            )
        self._row_shape, self._dtype = rows.shape[1:], rows.dtype
        row_bytes = max(1, int(np.prod(self._row_shape, dtype=np.int64)) * rows.dtype.itemsize)
        capacity = self._expected or max(len(rows), _FIRST_ROWS)
        self._most_rows = self._limit // row_bytes
        if self._path is not None or (self._expected or 0) > self._most_rows:
            self._file = _File(self._path, self._row_shape, self._dtype)
        else:
            # Untouched pages take no memory: the whole array is taken as it fills.
            self._array = np.empty((min(capacity, max(self._most_rows, len(rows))), *self._row_shape), self._dtype)

    def _check(self, rows: np.ndarray) -> None:
        if rows.shape[1:] != self._row_shape or rows.dtype != self._dtype:
            raise ArgumentError(
                f"The rows of {self._name} must have one shape and dtype. Received: {rows.shape[1:]} {rows.dtype} after "
                f"{self._row_shape} {self._dtype}. Pad the samples to one length, or predict lengths apart."
            )

    def _grow(self, num_rows: int) -> None:
        """Room for more rows: in the same array, which moves no bytes, or in a file from the limit on."""
        assert self._array is not None
        if num_rows > self._most_rows:
            self._file = _File(None, self._row_shape, self._dtype)
            self._file.write(self._array[: self.num_rows])
            self._array = None
            return
        capacity = max(num_rows, min(self._most_rows, len(self._array) + len(self._array) // _GROWTH))
        self._array.resize((capacity, *self._row_shape), refcheck=False)


class _File:
    """A ``.npy`` in the making, of so far unknown length.

    Bytes go through ``write``, not through a map: pages of a map that were written count as this process's on some systems.
    """

    def __init__(self, path: Path | None, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path = path
        self._row_shape = row_shape
        self._dtype = dtype
        self._draft: Path | None
        self._stream: BinaryIO
        if path is None:
            descriptor, draft = tempfile.mkstemp(prefix="memfit-", suffix=".npy")
            self._draft, self._stream = Path(draft), os.fdopen(descriptor, "w+b")
        else:
            # Opened the plain way, it has the permissions that numpy.save would give.
            self._draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            self._stream = self._draft.open("x+b")
        self._header(0)

    def write(self, rows: np.ndarray) -> None:
        # A view as bytes: numpy's own types of other packages (bfloat16) have no buffer interface.
        self._stream.write(np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data)

    def finish(self, num_rows: int) -> np.ndarray:
        """Completes the file, gives it its name where it has one, and maps it."""
        assert self._draft is not None
        self._header(num_rows)
        self._stream.flush()
        if self._path is not None:
            os.fsync(self._stream.fileno())
            os.replace(self._draft, self._path)
            self._draft = None
        shape = (num_rows, *self._row_shape)
        if not np.prod(shape, dtype=np.int64):
            return np.empty(shape, self._dtype)
        # Predictions without a name may be changed in place, as arrays may: nobody else has the file.
        mode: Any = "r" if self._path is not None else "r+"
        mapped = np.memmap(self._stream, self._dtype, mode, self._offset, shape)
        self.abandon()
        return mapped

    def abandon(self) -> None:
        """Closes the file; one that has no name yet goes, and its bytes with the last map of it."""
        self._stream.close()
        if self._draft is not None:
            with contextlib.suppress(OSError):
                self._draft.unlink()
            self._draft = None

    def _header(self, num_rows: int) -> None:
        """Writes the header in place: numpy leaves room in it for the first axis to grow."""
        self._stream.seek(0)
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (num_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._stream, description)
        self._offset = self._stream.tell()
