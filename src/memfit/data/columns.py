"""Rows of one array, by index, wherever it lies: numpy, a memory map, HDF5, Zarr, a sparse matrix."""

from __future__ import annotations

import abc
import importlib
import math
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import mapped_rows
from memfit.data.mapped_rows import MappedRows

CHUNK_BYTES = 2**20
"""Rows that need a step between (a cast, a sparse row made dense) go through it in pieces of about this size."""

_ZARR_CHUNKS_AT_ONCE = 10


class Column(abc.ABC):
    """One array of a data set.

    Attributes:
        shape: Samples first.
        dtype: What it holds.
        in_memory: Whether a row is there without waiting.
        reading_bytes: The most that one thread takes while it gathers, beside the rows themselves.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    in_memory: bool = True
    reading_bytes: int = 2 * CHUNK_BYTES

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is held."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read_in_any_order(self) -> None:  # noqa: B027
        """Told where rows will be asked for in a shuffled order."""

    def gather(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Writes rows: int64, shape (num_rows,), into an array of that many rows, cast to its dtype."""
        step = max(1, CHUNK_BYTES // max(1, self.row_bytes))
        for start in range(0, len(indices), step):
            out[start : start + step] = self._rows(indices[start : start + step])

    @abc.abstractmethod
    def _rows(self, indices: np.ndarray) -> Any:
        """A few rows as an array, dense."""


class NumpyColumn(Column):
    """A numpy array or memory map."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.in_memory = not _is_mapped(array)
        self._mapped: MappedRows | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": None}

    def read_in_any_order(self) -> None:
        self._mapped = mapped_rows.of(self.array)

    def gather(self, indices: np.ndarray, out: np.ndarray) -> None:
        if self._mapped is not None:
            self._mapped.ask(indices)
        flags = self.array.flags
        # Of any other array `take` makes a copy first, the whole of it.
        if out.dtype == self.dtype and out.flags.c_contiguous and flags.c_contiguous and flags.aligned:
            # "clip", because "raise" would go through a buffer; the indices come from a permutation.
            np.take(self.array, indices, axis=0, out=out, mode="clip")
        else:
            super().gather(indices, out)

    def _rows(self, indices: np.ndarray) -> Any:
        return self.array[indices]


class SparseColumn(Column):
    """A scipy sparse matrix or array; a batch of it is made dense."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix.tocsr()
        self.shape = tuple(matrix.shape)
        self.dtype = np.dtype(matrix.dtype)

    def _rows(self, indices: np.ndarray) -> Any:
        return self._matrix[indices].toarray()


class Hdf5Column(Column):
    """A data set of an HDF5 file, chunked or compressed: each row is read by itself."""

    in_memory = False

    def __init__(self, dataset: Any) -> None:
        self._file, self._name = dataset.file.filename, dataset.name
        self._dataset: Any = dataset
        self.shape = tuple(dataset.shape)
        self.dtype = np.dtype(dataset.dtype)
        chunk = math.prod(dataset.chunks or (1,)) * self.dtype.itemsize
        self.reading_bytes = 2 * CHUNK_BYTES + 2 * chunk

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_dataset": None}

    def _rows(self, indices: np.ndarray) -> Any:
        if self._dataset is None:
            self._dataset = importlib.import_module("h5py").File(self._file, "r")[self._name]
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        # In the order of the file, so that a chunk that holds several rows is read once. One at a time: HDF5's selection
        # of many points takes longer than as many calls.
        for place in np.argsort(indices, kind="stable").tolist():
            rows[place] = self._dataset[int(indices[place])]
        return rows


class ZarrColumn(Column):
    """A Zarr array: the chunks that hold a row are read for it."""

    in_memory = False

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        chunk = math.prod(array.chunks) * self.dtype.itemsize
        self.reading_bytes = 2 * CHUNK_BYTES + 2 * _ZARR_CHUNKS_AT_ONCE * chunk

    def _rows(self, indices: np.ndarray) -> Any:
        distinct, places = np.unique(indices, return_inverse=True)
        return np.asarray(self._array.oindex[distinct])[places]


class OneHotColumn(Column):
    """Integer labels as one-hot rows, made a batch at a time.

    Raises:
        ArgumentError: The labels are no integers, or, where they are in memory, out of range.
    """

    def __init__(self, name: str, labels: Column, num_classes: int) -> None:
        if labels.dtype.kind not in "iu" or math.prod(labels.shape[1:]) != 1:
            raise errors.ArgumentError(
                f"`one_hot` needs one integer a sample. Received: {name} of shape {labels.shape} and dtype {labels.dtype}."
                " Leave `one_hot` out for labels that are one-hot already."
            )
        self._name = name
        self._labels = labels
        self._num_classes = num_classes
        self.shape = (len(labels), num_classes)
        self.dtype = np.dtype(np.float32)
        self.in_memory = labels.in_memory
        self.reading_bytes = labels.reading_bytes + CHUNK_BYTES
        if isinstance(labels, NumpyColumn) and labels.in_memory:
            self._check(labels.array)

    def read_in_any_order(self) -> None:
        self._labels.read_in_any_order()

    def gather(self, indices: np.ndarray, out: np.ndarray) -> None:
        labels = np.empty((len(indices), *self._labels.shape[1:]), self._labels.dtype)
        self._labels.gather(indices, labels)
        self._check(labels)
        out[...] = 0
        out[np.arange(len(indices)), labels.reshape(-1)] = 1

    def _rows(self, indices: np.ndarray) -> Any:
        raise AssertionError("unreachable: gather is its own")

    def _check(self, labels: np.ndarray) -> None:
        least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
        if least < 0 or most >= self._num_classes:
            raise errors.ArgumentError(
                f"`one_hot` must be more than the largest label. Received: one_hot={self._num_classes} and labels from "
                f"{least} to {most} in {self._name}."
            )


def column(name: str, data: Any) -> Column:
    """The column of what a user passes.

    Args:
        name: How the user calls it.
        data: A numpy array, memory map, HDF5 data set, Zarr array, scipy sparse matrix, a series or frame of pandas, a
            tensor on the CPU, or a list of numbers.

    Raises:
        ArgumentError: It is none of these, or holds no numbers.
    """
    made = _column(data)
    if made is None or not made.shape or made.dtype.kind not in "fiub":
        described = f"a {type(data).__module__}.{type(data).__qualname__}"
        if made is not None:
            described += f" of shape {made.shape} and dtype {made.dtype}"
        raise errors.ArgumentError(
            f"`{name}` must be an array of numbers with the samples along its first axis. Received: {described}. "
            "Texts go through memfit.data.text, columns of a table through memfit.data.table, images through "
            "memfit.data.image_folder."
        )
    return made


def _column(data: Any) -> Column | None:
    if isinstance(data, np.ndarray):
        return NumpyColumn(data)
    if hasattr(data, "tocsr"):
        return SparseColumn(data)
    if hasattr(data, "oindex") and hasattr(data, "chunks"):
        return ZarrColumn(data)
    if hasattr(data, "read_direct") and hasattr(data, "file"):
        return _hdf5(data)
    if hasattr(data, "to_numpy"):
        return NumpyColumn(data.to_numpy())
    if hasattr(data, "detach"):
        data = data.detach().cpu()
    return NumpyColumn(np.asarray(data)) if hasattr(data, "__array__") or isinstance(data, (list, tuple)) else None


def _hdf5(dataset: Any) -> Column:
    """A memory map of the file where its rows lie in it as they are, which is many times faster than reading."""
    offset = dataset.id.get_offset() if dataset.chunks is None else None
    if offset is None or dataset.file.mode != "r" or dataset.file.driver != "sec2" or not dataset.dtype.isnative:
        return Hdf5Column(dataset)
    return NumpyColumn(np.memmap(dataset.file.filename, dataset.dtype, "r", offset, tuple(dataset.shape)))


def _is_mapped(array: Any) -> bool:
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False
