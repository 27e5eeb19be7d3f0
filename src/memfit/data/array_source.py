"""``memfit.data.arrays``: arrays by index, wherever they lie, as a data set that never copies one whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memfit import errors
from memfit.budgeting import host
from memfit.data import columns, pipeline_options, structure
from memfit.data.columns import Column
from memfit.data.pipeline_options import Division, PipelineOptions
from memfit.data.source import Draft, Source
from memfit.records import TensorSpec

_PART_BYTES = 2**18
"""A thread is started for at least so many bytes."""

_CLASSES_AT_MOST = 0.1


class ArraySource(Source):
    """Columns of the same length.

    Args:
        data: ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``: structures of Column.
        floatx: The dtype that floating-point columns are fed in.
        class_names: Names of the classes.
    """

    def __init__(self, data: tuple[Any, ...], *, floatx: str, class_names: tuple[str, ...] = ()) -> None:
        self._data = data
        self._columns = structure.leaves(data)
        self._flat = all(isinstance(part, Column) for part in data)
        self.num_samples = len(self._columns[0])
        self.spec = structure.mapped(lambda leaf: TensorSpec(leaf.shape[1:], _fed(leaf.dtype, floatx)), data)
        self._leaf_specs = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in structure.leaves(self.spec)]
        self._least_rows = -(-_PART_BYTES // max(1, self.sample_bytes))
        self.class_names = class_names
        self.classes = _classes(data)

    @property
    def reading_bytes(self) -> int:
        return sum(leaf.reading_bytes for leaf in self._columns)

    def begin(self, samples: np.ndarray, *, seed: int, epoch: int) -> Draft:
        # In flat lists, because a batch of a few small rows takes less time than walking a structure.
        rows = [np.empty((len(samples), *shape), dtype) for shape, dtype in self._leaf_specs]

        def read(start: int, stop: int) -> None:
            for source, out in zip(self._columns, rows, strict=True):
                source.gather(samples[start:stop], out[start:stop])

        def finish() -> Any:
            if self._flat:
                return tuple(rows) if len(rows) > 1 else rows[0]
            left = iter(rows)
            batch = structure.mapped(lambda _: next(left), self.spec)
            return batch if len(batch) > 1 else batch[0]

        return Draft(read, finish, self._least_rows)


def arrays(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int = 32,
    one_hot: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    workers: int | None = None,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
) -> Any:
    """Arrays as a data set for ``fit``, ``evaluate`` and ``predict`` that copies one batch at a time.

    Batches are gathered by index from where the arrays lie: in memory, in a memory map, in an HDF5 or Zarr file. Floats
    are cast to Keras' ``floatx`` and sparse rows made dense a batch at a time. A contiguous data set of an HDF5 file that is
    open for reading is memory-mapped.

    Args:
        x: Samples along the first axis: a numpy array or memory map, an h5py data set, a Zarr array, a scipy sparse matrix,
            anything else with ``to_numpy`` or ``__array__``; or a list, tuple or dict of them for several inputs.
        y: Targets, like ``x``.
        sample_weight: One number a sample.
        batch_size: Samples of a batch. The last one of an epoch has the rest.
        one_hot: Number of classes, to turn integer labels into one-hot rows.
        shuffle: Whether every epoch takes the samples in a new order, a permutation of all of them.
        seed: Makes the order of every epoch and the split repeatable; drawn from Python's ``random`` if left out.
        validation_split: Share of the samples to set aside for validation; the same share of every class where ``y`` holds
            classes. They are drawn, not taken from the end.
        subset: "training", "validation", or "both" for a tuple of the two; needed with ``validation_split``.
        workers: Threads that gather; 0 gathers in the thread that asks. Left out: 0 for arrays in memory, and for memory maps
            that stay there once they are read because half of the free memory holds them; else 2.
        max_queue_size: Batches gathered ahead.
        max_queue_bytes: Bytes of batches ahead.

    Raises:
        ArgumentError: The data holds no numbers, is of different length or empty, or an argument cannot work.

    Example:
        >>> import numpy as np
        >>> dataset = arrays(np.arange(12.0).reshape(6, 2), [0, 1, 2, 0, 1, 2], batch_size=4, one_hot=3, seed=0)
        >>> x, y = dataset[0]
        >>> x.shape, str(x.dtype), y.shape, len(dataset)
        ((4, 2), 'float32', (4, 3), 2)
    """
    data = tuple(
        _columns(part, name)
        for part, name in ((x, "x"), (y, "y"), (sample_weight, "sample_weight"))
        if part is not None
    )
    if sample_weight is not None and y is None:
        raise errors.ArgumentError("`sample_weight` weighs targets. Received: y=None. Pass `y`.")
    _check_lengths(data)
    if one_hot is not None:
        data = _one_hot(data, one_hot)
    division = Division(validation_split, subset, seed)
    options = PipelineOptions(
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=_default_workers(structure.leaves(data)) if workers is None else workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
    )
    for leaf in structure.leaves(data) if options.shuffle else ():
        leaf.read_in_any_order()
    import keras

    from memfit.data.pipeline import divided  # Both import Keras, which takes seconds: last.

    return divided(ArraySource(data, floatx=keras.config.floatx()), options, division)


def _default_workers(data: list[Column]) -> int:
    """0 where rows are there without waiting: a copy takes less time than handing it from thread to thread."""
    waiting = [leaf for leaf in data if not leaf.in_memory]
    mapped = sum(len(leaf) * leaf.row_bytes for leaf in waiting)
    read = any(not isinstance(leaf, columns.NumpyColumn) for leaf in waiting)
    return 2 if read or (waiting and mapped > host.free_bytes() // 2) else 0


def _columns(data: Any, name: str) -> Any:
    """Columns in the place of arrays. A list of plain numbers is one array; any other list has several inputs."""
    if isinstance(data, dict):
        return {key: _columns(part, f"{name}[{key!r}]") for key, part in data.items()}
    if isinstance(data, (list, tuple)) and not all(isinstance(part, (int, float, bool, np.number)) for part in data):
        return tuple(_columns(part, f"{name}[{i}]") for i, part in enumerate(data))
    return columns.column(name, data)


def _check_lengths(data: tuple[Any, ...]) -> None:
    named = [
        found
        for name, part in zip(("x", "y", "sample_weight"), data, strict=False)
        for found in structure.named_leaves(part, name)
    ]
    lengths = {len(leaf) for _, leaf in named}
    if len(lengths) > 1:
        shown = ", ".join(f"{name}: {len(leaf)}" for name, leaf in named)
        raise errors.ArgumentError(
            f"All arrays must have the same number of samples. Received: {shown}. Cut or complete them so that row i of one "
            "belongs to row i of the others."
        )
    if not named or lengths == {0}:
        raise errors.ArgumentError("The data is empty. Received: arrays with 0 samples. Pass at least one sample.")


def _one_hot(data: tuple[Any, ...], num_classes: int) -> tuple[Any, ...]:
    pipeline_options.require_integer("one_hot", num_classes, least=2)
    if len(data) < 2 or not isinstance(data[1], Column):
        raise errors.ArgumentError(
            f"`one_hot` needs one array of labels as `y`. Received: one_hot={num_classes} and "
            f"{'no y' if len(data) < 2 else 'several'}."
        )
    return (data[0], columns.OneHotColumn("y", data[1], num_classes), *data[2:])


def _fed(dtype: np.dtype[Any], floatx: str) -> str:
    return floatx if dtype.kind == "f" else str(dtype)


def _classes(data: tuple[Any, ...]) -> np.ndarray | None:
    """The labels, where ``y`` is one array in memory of integers that repeat."""
    if len(data) < 2 or not isinstance(data[1], columns.NumpyColumn) or not data[1].in_memory:
        return None
    labels = data[1].array
    if labels.dtype.kind not in "iub" or math.prod(labels.shape[1:]) != 1:
        return None
    labels = labels.reshape(-1)
    return labels if len(np.unique(labels)) <= max(2, _CLASSES_AT_MOST * len(labels)) else None
