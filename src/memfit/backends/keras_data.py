"""Keras' data adapters from inside: the order of arrays, and what ``fit`` accepts.

The rule of ``keras_seam`` holds here too: each private name has a test in ``tests/contract/test_keras_seam.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import array_data_adapter, data_adapter, data_adapter_utils

from memfit.backends.keras_seam import flatten, framework


def num_batches(arguments: dict[str, Any]) -> int | None:
    """Batches of an epoch, as ``fit`` tells its callbacks; None where the data does not know.

    Args:
        arguments: Of ``fit``, by name; its data is not a generator (which would be looked at).
    """
    if arguments.get("steps_per_epoch"):
        return int(arguments["steps_per_epoch"])
    share = arguments.get("validation_split")
    structure = (arguments.get("x"), arguments.get("y"), arguments.get("sample_weight"))
    if share and arguments.get("validation_data") is None and are_arrays(structure):
        num_samples = int(flatten(structure)[0].shape[0] * (1.0 - share))
        return -(-num_samples // (arguments.get("batch_size") or 32))
    names = ("x", "y", "sample_weight", "batch_size", "class_weight")
    found = data_adapters.get_data_adapter(**{name: arguments.get(name) for name in names}).num_batches
    return None if found is None else int(found)


DataAdapter = data_adapter.DataAdapter
"""What ``fit`` accepts as ``x`` beside arrays and data sets (``get_data_adapter`` passes it through)."""


def array_order(num_samples: int, *, batch_size: int | None, steps: int | None, shuffle: Any) -> Any:
    """Keras' own array adapter over ``range(num_samples)``: yields the indices of each batch in the order of ``fit``."""
    return _IndexAdapter(np.arange(num_samples), batch_size=batch_size, steps=steps, shuffle=shuffle)


class _IndexAdapter(array_data_adapter.ArrayDataAdapter):
    """Iterates over bare index vectors where Keras' adapter gives tuples of one array."""

    def get_numpy_iterator(self) -> Iterator[Any]:
        return map(_only, super().get_numpy_iterator())

    def get_jax_iterator(self) -> Iterator[Any]:
        return map(_only, super().get_jax_iterator())


def _only(structure: Any) -> Any:
    (leaf,) = flatten(structure)
    return leaf


def skip_build_draw(num_samples: int, *, batch_size: int | None, steps: int | None, shuffle: Any) -> None:
    """Draws the random numbers that ``fit`` would draw to look at a first batch when it builds the model itself.

    After ``symbolic_build`` has done the building, ``fit`` draws once less; this keeps the order of its batches.
    """
    order = array_order(num_samples, batch_size=batch_size, steps=steps, shuffle=shuffle)
    if framework() == "jax":
        next(iter(order.get_jax_iterator()))
    elif framework() == "torch":
        next(iter(order.get_torch_dataloader()))


def lists_to_tuples(structure: Any) -> Any:
    """The structure with tuples for lists, as ``tf.data`` wants it."""
    return keras.tree.lists_to_tuples(structure)


def class_weights(y: Any, class_weight: Any) -> Any:
    """One sample weight for each label, as ``fit(class_weight=...)`` computes them."""
    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def are_arrays(structure: Any) -> bool:
    """Whether ``fit`` would take the structure as arrays."""
    return bool(array_data_adapter.can_convert_arrays(structure))
