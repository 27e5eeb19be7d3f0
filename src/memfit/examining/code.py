"""Mistakes of the catalogue that can be seen in code: it is parsed, never run."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path

from memfit import units
from memfit.backends.surroundings import HISTOGRAM_BYTES
from memfit.errors import ArgumentError
from memfit.examining import reading, sizes
from memfit.examining.findings import Finding
from memfit.examining.reading import Chain

_MANY_CLASSES = 256
_LARGE = 64 * units.MIB
_MANY_WAITING = 64
_LARGE_BUFFER = 512 * units.MIB
_DOUBLES = ("float64", "double", "float")


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
    return sorted(_Code(tree, path).findings(), key=lambda one: int(one.where.rpartition(":")[2]))


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


class _Code:
    def __init__(self, tree: ast.Module, path: Path) -> None:
        self._tree = tree
        self._path = path
        self._names = reading.Names(tree)

    def findings(self) -> Iterator[Finding]:
        inner: set[int] = set()
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Call):
                continue
            yield from self._call(node)
            if id(node) not in inner:
                chain = reading.chain_of(node)
                inner.update(id(call) for call in chain.calls)
                yield from self._chain(chain)

    def _finding(self, node: ast.AST, what: str, num_bytes: int | None, cure: str) -> Finding:
        return Finding("warning", what, num_bytes, cure, f"{self._path.name}:{getattr(node, 'lineno', 1)}")

    def _call(self, call: ast.Call) -> Iterator[Finding]:
        name, given = reading.called(call), reading.words(call)
        if sizes.makes_array(call):
            yield from self._float64(call)
        if name == "astype" and call.args and reading.text(call.args[0]) in _DOUBLES:
            yield self._astype(call)
        if name == "to_categorical":
            yield from self._categorical(call, given)
        if name == "TensorBoard" and self._names.value(given.get("histogram_freq")) not in (None, 0):
            yield self._histograms(call)
        yield from self._waiting(call, given)

    def _float64(self, call: ast.Call) -> Iterator[Finding]:
        array = sizes.made(call, self._names)
        if array is not None and array.dtype == "float64" and array.bytes >= _LARGE:
            cure = (
                f"float32 takes {units.text(array.bytes // 2)}: pass dtype='float32', or .astype('float32') on parts."
            )
            what = "An array of float64, numpy's default; Keras casts it to float32, as a copy."
            yield self._finding(call, what, array.bytes, cure)

    def _astype(self, call: ast.Call) -> Finding:
        array = sizes.array_of(call, self._names)
        size = "8 bytes a number" if array is None else str(array)
        what = f"float64 is twice float32, and Keras casts it to that anyway: {size}."
        half = "4 bytes a number" if array is None else units.text(array.bytes // 2)
        return self._finding(
            call, what, None if array is None else array.bytes, f"Write astype('float32'), which takes {half}."
        )

    def _categorical(self, call: ast.Call, given: dict[str, ast.expr]) -> Iterator[Finding]:
        number = self._names.number(given.get("num_classes") or (call.args[1] if len(call.args) > 1 else None))
        if number is not None and number >= _MANY_CLASSES:
            what = f"to_categorical makes {number} numbers of each label: so many bytes for every sample."
            cure = "Keep the whole numbers and compile with loss='sparse_categorical_crossentropy': the same loss."
            yield self._finding(call, what, 8 * number, cure)

    def _histograms(self, call: ast.Call) -> Finding:
        largest = max(sizes.embeddings(self._tree, self._names), default=None)
        seen = f"{units.text(HISTOGRAM_BYTES * 10**6)} for each million" if largest is None else f"seen: {largest[1]}"
        num_bytes = None if largest is None else HISTOGRAM_BYTES * largest[0]
        what = (
            "histogram_freq copies every weight to the host at each such epoch and sorts it into bins: about "
            f"{HISTOGRAM_BYTES} bytes for each number of the largest weight ({seen})."
        )
        return self._finding(call, what, num_bytes, "Set histogram_freq=0.")

    def _waiting(self, call: ast.Call, given: dict[str, ast.expr]) -> Iterator[Finding]:
        """Whole batches in Keras' queue, where ``workers`` and ``max_queue_size`` of a call let many wait."""
        workers, queue = self._names.number(given.get("workers")), self._names.number(given.get("max_queue_size"))
        waiting = (workers or 1) + (10 if queue is None else queue)
        if (workers is None and queue is None) or waiting < _MANY_WAITING:
            return
        fed = call.args[0] if call.args and reading.called(call).startswith("fit") else given.get("x")
        elements = sizes.elements_of(fed, self._names, self._path.parent)
        elements = elements if elements.is_batched else sizes.by_words(call, self._names)
        num_bytes, amount = elements.amount(elements.samples_of(waiting))
        what = f"Up to {waiting} whole batches wait, workers and max_queue_size beside them: {amount}."
        yield self._finding(
            call, what, num_bytes, "Lower max_queue_size to 10 or less; memfit.data bounds it by bytes."
        )

    def _chain(self, chain: Chain) -> Iterator[Finding]:
        for position, call in enumerate(chain.calls):
            name = reading.called(call)
            if name not in ("cache", "shuffle") or not isinstance(call.func, ast.Attribute):
                continue
            elements = sizes.elements_before(chain, position, self._names, self._path.parent)
            if name == "cache" and not call.args and not call.keywords:
                yield self._cache(call, elements)
            if name == "shuffle" and (call.args or "buffer_size" in reading.words(call)):
                yield from self._shuffle(call, elements)

    def _cache(self, call: ast.Call, elements: sizes.Elements) -> Finding:
        num_bytes, amount = elements.amount(elements.number)
        what = f"cache() keeps the whole data set in memory, however large it is: {amount}."
        cure = "Pass a file, cache('/tmp/cache'), or leave it out; memfit.fit bounds it by what there is."
        return self._finding(call, what, num_bytes, cure)

    def _shuffle(self, call: ast.Call, elements: sizes.Elements) -> Iterator[Finding]:
        buffer = call.args[0] if call.args else reading.words(call)["buffer_size"]
        samples = elements.samples_of(self._names.number(buffer))
        cure = "Shuffle file names or indices before they are decoded, or take a buffer of about 1000."
        is_all = isinstance(buffer, ast.Call) and reading.called(buffer) in ("len", "cardinality")
        if is_all:
            samples = elements.number
            num_bytes, amount = elements.amount(samples)
            what = f"shuffle(len(dataset)) holds every element in memory at once: {amount}."
            yield self._finding(call, what, num_bytes, cure)
        elif samples is not None and elements.number is not None:
            samples = min(samples, elements.number)
        num_bytes, amount = elements.amount(samples)
        if elements.is_batched:
            what = f"shuffle after batch: whole batches are held and keep their samples together: {amount}."
            yield self._finding(call, what, num_bytes, "Put shuffle before batch.")
        elif not is_all and num_bytes is not None and num_bytes >= _LARGE_BUFFER:
            yield self._finding(call, f"shuffle holds a large buffer in memory: {amount}.", num_bytes, cure)
