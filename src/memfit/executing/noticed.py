"""What in the arguments of ``fit`` takes memory that no plan can mend, named with its bytes and what would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_seam
from memfit.backends.surroundings import HISTOGRAM_BYTES
from memfit.units import text

_SHARE = 0.05
"""Of the budget; what takes less is not worth a sentence."""

_ROWS = 64
"""Rows of an array that are looked at."""

_MANY_CLASSES = 8
_SPARSE = 0.95


def sentences(model: Any, arguments: dict[str, Any], budget_bytes: int) -> tuple[str, ...]:
    """Sentences for the user; none where nothing of it is large.

    Args:
        model: Built, or not; its weights are counted.
        arguments: Of ``fit``, by name.
        budget_bytes: What training may take of the host.
    """
    least = int(_SHARE * budget_bytes)
    data = arguments.get("x")
    if isinstance(data, keras.utils.PyDataset):
        found = _held_by(data, least)
    else:
        found = [*_labels(arguments.get("y"), least), *_inputs(data, least)]
    return (*found, *_histograms(model, arguments.get("callbacks"), least))


def _held_by(dataset: Any, least: int) -> list[str]:
    arrays = {name: value for name, value in vars(dataset).items() if _is_large(value, least)}
    if not arrays or hasattr(dataset, "batch_spec"):
        return []
    held = sum(value.nbytes for value in arrays.values())
    return [
        f"{type(dataset).__name__} holds {text(held)} of data itself ({', '.join(arrays)}), beside its batches: read what a "
        "batch needs in __getitem__, or keep it in a file (numpy.load with mmap_mode='r')"
    ]


def _labels(y: Any, least: int) -> Iterator[str]:
    if not _is_large(y, least) or y.ndim != 2 or y.shape[1] < _MANY_CLASSES:
        return
    rows = y[:_ROWS]
    if (rows.max(axis=1) == 1).all() and (np.count_nonzero(rows, axis=1) == 1).all():
        sparse = 4 * y.shape[0]
        yield (
            f"y holds {text(y.nbytes)} of one-hot labels, which as whole numbers are {text(sparse)}: leave to_categorical out "
            "and use the loss sparse_categorical_crossentropy"
        )


def _inputs(x: Any, least: int) -> Iterator[str]:
    for array in keras_seam.flatten(x):
        if not _is_large(array, least):
            continue
        zeros = 1 - np.count_nonzero(array[:_ROWS]) / max(1, array[:_ROWS].size)
        if zeros >= _SPARSE:
            yield (
                f"x holds {text(array.nbytes)}, {zeros:.0%} of it zeros: keep it sparse, and make the rows of a batch dense in "
                "a keras.utils.PyDataset"
            )
        else:
            yield (
                f"x holds {text(array.nbytes)} of data, whole in memory, which no plan makes smaller: memfit.data reads "
                "images, tables and texts a batch at a time, numpy.load with mmap_mode='r' an array"
            )


def _histograms(model: Any, callbacks: Any, least: int) -> Iterator[str]:
    given = getattr(callbacks, "callbacks", callbacks)
    boards = [one for one in given or () if isinstance(one, keras.callbacks.TensorBoard)] if _is_list(given) else []
    if not any(board.histogram_freq for board in boards):
        return
    largest = max((int(np.prod(weight.shape)) for weight in model.weights), default=0)
    held = HISTOGRAM_BYTES * largest
    if held and held >= least:
        yield (
            f"TensorBoard(histogram_freq=...) copies every weight to the host and sorts it into bins at the end of an epoch: "
            f"{text(held)} for the largest, which the plan does not count: set histogram_freq=0"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_large(value: Any, least: int) -> bool:
    """Whether it is an array in memory, and not one of a file's, of so many bytes."""
    return (
        isinstance(value, np.ndarray) and not isinstance(value, np.memmap) and value.ndim > 0 and value.nbytes >= least
    )
