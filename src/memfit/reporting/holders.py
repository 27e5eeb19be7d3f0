"""What holds memory in a notebook, by the names of its variables: what the user can free."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from memfit import units
from memfit.records import Reading, Shown

_DEPTH = 4
_MOST_ITEMS = 10_000
_LEAST_BYTES = units.MIB


@dataclasses.dataclass(frozen=True)
class Holder:
    """A variable, and what would be freed with it if nothing else held the same.

    Attributes:
        names: The variable; others that hold the very same memory after it.
        kind: Its class, with its shape where it has one.
        bytes: What it holds.
        cure: What frees it.
    """

    names: tuple[str, ...]
    kind: str
    bytes: int
    cure: str


@dataclasses.dataclass(frozen=True)
class Holders(Shown):
    """The largest holders of a namespace beside what the process holds.

    Attributes:
        items: The largest first.
        reading: What the process holds.
    """

    items: tuple[Holder, ...]
    reading: Reading

    def __str__(self) -> str:
        device = self.reading.device_bytes
        also = "" if device is None else f" and {units.text(device)} of device memory"
        lines = [f"This process holds {units.text(self.reading.host_bytes)} of host memory{also}."]
        lines += [f"{units.text(one.bytes):>9}  {', '.join(one.names)} ({one.kind}): {one.cure}" for one in self.items]
        if not self.items:
            lines.append(f"No variable holds more than {units.text(_LEAST_BYTES)}.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(", ".join(one.names), one.kind, units.text(one.bytes), one.cure) for one in self.items]
        head = "".join(f"<th>{name}</th>" for name in ("Variable", "What", "Bytes", "To free it"))
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<p>{escape(str(self).splitlines()[0])}</p><table><tr>{head}</tr>{body}</table>"


def of_namespace(namespace: Mapping[str, Any], reading: Reading, *, most: int = 12) -> Holders:
    """The largest arrays, tensors, models and containers of them.

    Args:
        namespace: Names and what they stand for, like a notebook's ``globals()``.
        reading: What the process holds.
        most: How many are shown.

    Example:
        >>> held = of_namespace({"x": np.zeros(2**21, "uint8")}, Reading(2**30, None, ""))
        >>> print(str(held).splitlines()[1])
            2 MiB  x (ndarray of shape (2097152,)): del x
    """
    found: dict[frozenset[int], Holder] = {}
    for name, value in [*_variables(namespace), *_of_last_error()]:
        blocks: dict[int, int] = {}
        _collect(value, blocks, _DEPTH)
        num_bytes = sum(blocks.values())
        if num_bytes < _LEAST_BYTES:
            continue
        key, known = frozenset(blocks), found.get(frozenset(blocks))
        if known is None:
            found[key] = Holder((name,), _kind(value), num_bytes, _cure(name))
        else:
            names = (*known.names, name)
            own = [one for one in names if not one.startswith(("Out[", "the last error"))]
            cure = f"del {', '.join(own)}" if own else known.cure
            found[key] = dataclasses.replace(known, names=names, cure=cure)
    largest = sorted(found.values(), key=lambda holder: -holder.bytes)
    return Holders(tuple(largest[:most]), reading)


def _variables(namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    outputs = namespace.get("Out")
    for name, value in list(namespace.items()):
        if not name.startswith("_") and name not in ("In", "Out") and not isinstance(value, types.ModuleType):
            yield name, value
    if isinstance(outputs, dict):  # what cells returned stays alive in the notebook's history
        for number, value in list(outputs.items()):
            yield f"Out[{number}]", value


def _of_last_error() -> Iterator[tuple[str, Any]]:
    """Variables of the functions that the last error went through: its traceback keeps them."""
    error = getattr(sys, "last_value", None)
    traceback = getattr(error, "__traceback__", None)
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name != "<module>":
            for name, value in list(frame.f_locals.items()):
                yield f"the last error ({frame.f_code.co_name}: {name})", value
        traceback = traceback.tb_next


def _cure(name: str) -> str:
    if name.startswith("the last error"):
        return "import sys; sys.last_value = sys.last_traceback = sys.last_exc = None"
    if name.startswith("Out["):
        return f"Out.pop({name[4:-1]}), and end the cell's last line with ;"
    return f"del {name}"


def _collect(value: Any, blocks: dict[int, int], depth: int) -> None:
    """Adds the memory blocks that a value holds, each once, by their identity."""
    if isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        if not isinstance(base, np.memmap) and not isinstance(base.base, (np.memmap, memoryview)):
            blocks[id(base)] = int(base.nbytes)
        return
    if isinstance(value, (bytes, bytearray, str)):
        blocks[id(value)] = sys.getsizeof(value)
        return
    variables = getattr(value, "variables", None) if _is_model(value) else None
    if variables is not None:
        optimizer = getattr(value, "optimizer", None)
        for variable in [*variables, *(getattr(optimizer, "variables", None) or [])]:
            blocks[id(variable)] = _tensor_bytes(variable)
        return
    num_bytes = _tensor_bytes(value)
    if num_bytes:
        blocks[id(value)] = num_bytes
    elif depth and isinstance(value, (list, tuple, dict, set)):
        items = value.values() if isinstance(value, dict) else value
        for number, item in enumerate(list(items)):
            if number >= _MOST_ITEMS:
                break
            _collect(item, blocks, depth - 1)


def _is_model(value: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.layers.Layer)


def _tensor_bytes(value: Any) -> int:
    """Of anything with a shape and a dtype, or that says itself what it holds; 0 for what is neither."""
    if isinstance(value, type):
        return 0
    try:
        usage = getattr(value, "memory_usage", None)
        if callable(usage):  # a table of pandas
            used = usage()
            return int(used.sum() if hasattr(used, "sum") else used)
        shape = getattr(value, "shape", None)
        if shape is None:
            return 0
        size = getattr(value, "nbytes", None)
        if isinstance(size, int):
            return size
        dtype = value.dtype
        item = getattr(dtype, "itemsize", None) or getattr(dtype, "size", None) or np.dtype(str(dtype)).itemsize
        return math.prod(int(length) for length in shape) * int(item)
    except Exception:  # noqa: BLE001 - any object may stand in a notebook, and raise what it likes when it is asked
        return 0


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return f"{name} of shape {tuple(shape)}" if shape is not None and not _is_model(value) else name
