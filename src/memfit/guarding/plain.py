"""Plain values as JSON and numpy arrays, and back: what a snapshot may hold. Nothing that runs code when it is read."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class NotPlainError(TypeError):
    """The value is not one of the kinds that a snapshot holds."""


def encoded(value: Any, arrays: Arrays) -> Any:
    """The value as JSON; its arrays are added to ``arrays`` and named in it.

    None, booleans, numbers, texts, lists, tuples, dictionaries, numpy scalars and numpy arrays, nested as they come; and
    functions of numpy and ``keras.ops`` by name, by which Keras' callbacks compare.

    Raises:
        NotPlainError: Some part of it is of another kind.

    Example:
        >>> arrays = {}
        >>> document = encoded({"epoch": 3, "best": np.zeros(2)}, arrays)
        >>> decoded(document, arrays)["epoch"]
        3
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        name = f"a{len(arrays)}"
        # Types that numpy itself does not know, such as bfloat16, are written as their bytes.
        own = value.dtype.isbuiltin == 1
        arrays[name] = value if own else np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"array": name, "dtype": None if own else value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, np.generic) and value.dtype.kind != "O":
        return {"scalar": encoded(np.asarray(value), arrays)}
    if type(value) is list:
        return [encoded(item, arrays) for item in value]
    if type(value) is tuple:
        return {"tuple": [encoded(item, arrays) for item in value]}
    if type(value) is dict:
        return {"pairs": [[encoded(key, arrays), encoded(item, arrays)] for key, item in value.items()]}
    if callable(value):
        for module in _FUNCTIONS:
            name = getattr(value, "__name__", "")
            if value is getattr(sys.modules.get(module), name, None):
                return {"function": [module, name]}
    raise NotPlainError(f"A snapshot holds plain values only. Received: a {type(value).__qualname__}.")


def decoded(document: Any, arrays: Any) -> Any:
    """The value that ``encoded`` took apart.

    Args:
        document: What ``encoded`` gave.
        arrays: The arrays by name: a dictionary, or an open ``.npz`` file.
    """
    if isinstance(document, list):
        return [decoded(item, arrays) for item in document]
    if not isinstance(document, dict):
        return document
    if "array" in document:
        array = arrays[document["array"]]
        if document["dtype"] is not None:
            import ml_dtypes

            array = array.view(np.dtype(getattr(ml_dtypes, document["dtype"])))
        return array.reshape(document["shape"])
    if "scalar" in document:
        return decoded(document["scalar"], arrays)[()]
    if "function" in document:
        module, name = document["function"]
        if module not in _FUNCTIONS:
            raise ValueError(f"no function of {module}")
        return getattr(importlib.import_module(module), name)
    if "tuple" in document:
        return tuple(decoded(item, arrays) for item in document["tuple"])
    return {decoded(key, arrays): decoded(item, arrays) for key, item in document["pairs"]}


def attributes(owner: Any, constant: dict[str, int]) -> dict[str, Any]:
    """The plain attributes of an object: counters, best values, orders of samples.

    Args:
        owner: A callback or a data set.
        constant: From ``large_arrays`` before the run: those that are still the same are data, not state, and left out.
    """
    found = {}
    for name, value in vars(owner).items():
        if name in _OF_KERAS or (name in constant and constant[name] == id(value)):
            continue
        try:
            encoded(value, {})
        except NotPlainError:
            continue
        found[name] = value
    return found


def large_arrays(owner: Any) -> dict[str, int]:
    """The identity of each attribute of an object that is an array of more than a MiB."""
    return {
        name: id(value)
        for name, value in vars(owner).items()
        if isinstance(value, np.ndarray) and value.nbytes > _LARGE
    }


_FUNCTIONS = ("numpy", "keras.ops")

_OF_KERAS = frozenset({"_model", "params", "validation_data"})

_LARGE = 2**20
