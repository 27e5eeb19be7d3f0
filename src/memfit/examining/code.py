"""Mistakes of the catalogue that can be seen in code: it is parsed, never run."""

from __future__ import annotations

import ast
import dataclasses
import importlib.machinery
import math
import operator
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memfit import units
from memfit.errors import ArgumentError
from memfit.examining.findings import Finding

_MANY_CLASSES = 256
_LARGE = 64 * units.MIB
_MANY_WAITING = 64
_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def examined(path: Path) -> list[Finding]:
    """What is seen in a script.

    Raises:
        ArgumentError: It cannot be read or is no Python.
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ArgumentError(
            f"The script cannot be read as Python ({error}). Received: {str(path)!r}. Pass a .py file or -m MODULE."
        ) from error
    return sorted(_Code(tree, path.name).findings(), key=lambda one: int(one.where.rpartition(":")[2]))


def file_of_module(name: str) -> Path:
    """The file of a module, found without importing it or its packages.

    Raises:
        ArgumentError: There is no such module, or it has no Python file.
    """
    folders: list[str] | None = ["", *sys.path]
    spec = None
    for part in name.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, folders) if part and folders is not None else None
        if spec is None:
            break
        folders = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ArgumentError(f"There is no module with a Python file of that name. Received: -m {name!r}.")
    return Path(spec.origin)


@dataclasses.dataclass(frozen=True)
class _Chain:
    """``source.a(...).b(...)``: its calls from the first to the last."""

    calls: tuple[ast.Call, ...]

    @property
    def names(self) -> list[str]:
        return [_name(call) for call in self.calls]


class _Code:
    def __init__(self, tree: ast.Module, file: str) -> None:
        self._tree = tree
        self._file = file
        self._constants = _constants(tree)

    def findings(self) -> Iterator[Finding]:
        inner: set[int] = set()
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Call):
                continue
            yield from self._call(node)
            if id(node) not in inner:
                chain = _chain(node)
                inner.update(id(call) for call in chain.calls)
                yield from self._chain(chain)

    def _finding(self, node: ast.AST, what: str, num_bytes: int | None, cure: str) -> Finding:
        return Finding("warning", what, num_bytes, cure, f"{self._file}:{getattr(node, 'lineno', 1)}")

    def _call(self, call: ast.Call) -> Iterator[Finding]:
        name, given = _name(call), {word.arg: word.value for word in call.keywords if word.arg}
        if name in ("zeros", "ones", "empty", "rand", "randn", "random", "full") and _owner(call) in (
            "np",
            "numpy",
            "random",
        ):
            yield from self._float64(call, name, given)
        if name == "astype" and call.args and _dtype(call.args[0]) in ("float64", "double", "float"):
            yield self._finding(
                call, "float64 is twice float32, and Keras casts it to that anyway.", None, "Write astype('float32')."
            )
        if name == "to_categorical":
            yield from self._categorical(call, given)
        if name == "TensorBoard" and self._value(given.get("histogram_freq")) not in (None, 0):
            yield self._finding(
                call,
                "histogram_freq copies every weight to the host at each such epoch.",
                None,
                "Set histogram_freq=0.",
            )
        workers, queue = self._value(given.get("workers")), self._value(given.get("max_queue_size"))
        if isinstance(workers, int) or isinstance(queue, int):
            waiting = (workers if isinstance(workers, int) else 1) + (queue if isinstance(queue, int) else 10)
            if waiting >= _MANY_WAITING:
                what = f"Up to {waiting} whole batches wait: workers, and max_queue_size beside them."
                yield self._finding(
                    call, what, None, "Lower max_queue_size to 10 or less; memfit.data bounds it by bytes."
                )

    def _float64(self, call: ast.Call, name: str, given: dict[str, ast.expr]) -> Iterator[Finding]:
        position = 2 if name == "full" else 1
        typed = given.get("dtype") or (
            call.args[position] if name in ("zeros", "ones", "empty", "full") and len(call.args) > position else None
        )
        if typed is not None and _dtype(typed) not in ("float64", "double", "float"):
            return
        first = call.args[0] if call.args else given.get("shape") or given.get("size")
        shape = [self._value(arg) for arg in call.args] if name in ("rand", "randn") else self._value(first)
        shape = (shape,) if isinstance(shape, int) else shape
        if not shape or not all(isinstance(length, int) and length >= 0 for length in shape):
            return
        num_bytes = 8 * math.prod(shape)
        if num_bytes >= _LARGE:
            cure = f"float32 takes {units.text(num_bytes // 2)}: pass dtype='float32', or .astype('float32') on parts."
            yield self._finding(
                call, "An array of float64, numpy's default; Keras casts it to float32, as a copy.", num_bytes, cure
            )

    def _categorical(self, call: ast.Call, given: dict[str, ast.expr]) -> Iterator[Finding]:
        number = self._value(given.get("num_classes") or (call.args[1] if len(call.args) > 1 else None))
        if isinstance(number, int) and number >= _MANY_CLASSES:
            what = f"to_categorical makes {number} numbers of each label: so many bytes for every sample."
            cure = "Keep the whole numbers and compile with loss='sparse_categorical_crossentropy': the same loss."
            yield self._finding(call, what, 8 * number, cure)

    def _chain(self, chain: _Chain) -> Iterator[Finding]:
        names, batch = chain.names, self._batch_bytes(chain)
        for position, (call, name) in enumerate(zip(chain.calls, names, strict=True)):
            if name == "cache" and not call.args and not call.keywords and isinstance(call.func, ast.Attribute):
                cure = "Pass a file, cache('/tmp/cache'), or leave it out; memfit.fit bounds it by what there is."
                yield self._finding(
                    call, "cache() keeps the whole data set in memory, however large it is.", None, cure
                )
            if name != "shuffle" or not call.args or not isinstance(call.func, ast.Attribute):
                continue
            buffer = call.args[0]
            size = self._value(buffer)
            if isinstance(buffer, ast.Call) and _name(buffer) in ("len", "cardinality"):
                cure = "Shuffle file names or indices before they are decoded, or take a buffer of about 1000."
                yield self._finding(call, "shuffle(len(dataset)) holds every element in memory at once.", None, cure)
            if "batch" in names[:position] or batch is not None:
                held = batch * size if batch is not None and isinstance(size, int) else None
                what = "shuffle after batch: whole batches are held and keep their samples together."
                yield self._finding(call, what, held, "Put shuffle before batch.")

    def _batch_bytes(self, chain: _Chain) -> int | None:
        """Of one batch, where the chain begins with one of Keras' image loaders and its sizes can be read."""
        call = chain.calls[0]
        if _name(call) != "image_dataset_from_directory":
            return None
        given = {word.arg: self._value(word.value) for word in call.keywords}
        size, batch = given.get("image_size", (256, 256)), given.get("batch_size", 32)
        if not isinstance(size, tuple) or not isinstance(batch, int) or not all(isinstance(one, int) for one in size):
            return None
        return batch * math.prod(size) * 3 * 4

    def _value(self, node: ast.AST | None) -> Any:
        return _value(node, self._constants)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Names of the module that are given one plain value, once."""
    found: dict[str, Any] = {}
    stored = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            value = _value(node.value, found)
            if value is not None and stored.count(name) == 1:
                found[name] = value
    return found


def _value(node: ast.AST | None, constants: dict[str, Any]) -> Any:
    """A whole number or a tuple that can be read off; None for what cannot."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int) else None
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(item, constants) for item in node.elts)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left, constants), _value(node.right, constants)
        if isinstance(left, int) and isinstance(right, int) and not (isinstance(node.op, ast.FloorDiv) and right == 0):
            return _OPERATIONS[type(node.op)](left, right)
    return None


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _owner(call: ast.Call) -> str:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")


def _dtype(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return str(node.value) if isinstance(node, ast.Constant) else getattr(node, "id", "")


def _chain(call: ast.Call) -> _Chain:
    calls = [call]
    while isinstance(calls[-1].func, ast.Attribute) and isinstance(calls[-1].func.value, ast.Call):
        calls.append(calls[-1].func.value)
    return _Chain(tuple(reversed(calls)))
