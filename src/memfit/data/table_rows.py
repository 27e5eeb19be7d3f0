"""A table turned into rows of fixed size, once: numbers as float32, texts as codes of a vocabulary collected on the way.

Codes are handed out in the order of appearance, because one pass shall do; ``Rows.ranks`` puts them in alphabetical order
when a batch is read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memfit import errors
from memfit.data.table_files import Table

VERSION = 1
_INT32 = 2**31


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which columns a row holds.

    Attributes:
        numbers: Features that are numbers, in the order of the matrix.
        categories: Features that are texts.
        labels: Label columns; several make a vector of numbers.
        label_kind: "text", "integer" or "number"; None where there are no labels.
        weight: Column of sample weights, or None.
        missing: What missing numbers of features become; None where they are an error.
        max_categories: The most different texts of a column.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    labels: tuple[str, ...]
    label_kind: str | None
    weight: str | None
    missing: float | None
    max_categories: int

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        weight = () if self.weight is None else (self.weight,)
        return tuple(dict.fromkeys((*self.numbers, *self.categories, *self.labels, *weight)))

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that are read as texts."""
        return (*self.categories, *(self.labels if self.label_kind == "text" else ()))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a row: "numbers", "categories", "labels" and "weight", as far as there are such."""
        fields: list[tuple[Any, ...]] = []
        if self.numbers:
            fields.append(("numbers", "<f4", (len(self.numbers),)))
        if self.categories:
            fields.append(("categories", "<i4", (len(self.categories),)))
        if self.labels:
            kind = "<f4" if self.label_kind == "number" else "<i4"
            fields.append(("labels", kind, (len(self.labels),) if len(self.labels) > 1 else ()))
        if self.weight is not None:
            fields.append(("weight", "<f4"))
        return np.dtype(fields)


class Vocabularies:
    """Texts of each column with their codes, from 1 in the order of appearance; 0 is missing.

    Args:
        given: Column -> its texts, in their final order: then no others get a code.
        max_categories: The most that a column may have.
    """

    def __init__(self, given: dict[str, Sequence[str]], max_categories: int) -> None:
        self.codes: dict[str, dict[str, int]] = {
            name: {text: code for code, text in enumerate(texts, 1)} for name, texts in given.items()
        }
        self._fixed = frozenset(given)
        self._most = max_categories
        self.unknown: dict[str, str] = {}

    def encode(self, name: str, values: Any) -> np.ndarray:
        """Codes of a ``pyarrow`` array of texts: int32, shape (num_rows,)."""
        if hasattr(values, "dictionary_decode"):
            values = values.dictionary_decode()
        encoded = values.cast("string").dictionary_encode()
        known = self.codes.setdefault(name, {})
        lookup = np.zeros(len(encoded.dictionary) + 1, np.int32)
        for place, text in enumerate(encoded.dictionary.to_pylist(), 1):
            code = known.get(text)
            if code is None and name in self._fixed:
                self.unknown.setdefault(name, text)
                code = 0
            elif code is None:
                code = known[text] = len(known) + 1
            lookup[place] = code
        if len(known) > self._most and name not in self._fixed:
            raise errors.ArgumentError(
                f"Column {name!r} has more than {self._most} different texts, such as {next(iter(known))!r}. Is it a name or "
                "a number of something? Leave it out of `features`, or raise `max_categories`. "
                f"Received: max_categories={self._most}"
            )
        return lookup[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1]


def convert(
    table: Table,
    layout: Layout,
    write: Callable[[np.ndarray], None],
    *,
    vocabularies: dict[str, Sequence[str]],
    report: Callable[[int], None],
) -> dict[str, list[str]]:
    """Reads a table once and writes its rows.

    Args:
        table: To read.
        layout: Of the rows.
        write: Called with a few rows at a time, of ``layout.dtype``.
        vocabularies: Column -> texts, for columns whose codes are fixed.
        report: Called with the number of rows so far.

    Returns:
        Column -> its texts in the order of their codes.

    Raises:
        ArgumentError: Values are missing, labels are no integers, or a column has too many different texts.
    """
    codes = Vocabularies(vocabularies, layout.max_categories)
    missing: dict[str, tuple[int, str]] = {}
    num_rows = 0
    for where, batch in table.batches(layout.columns, layout.texts):
        rows = np.zeros(len(batch), layout.dtype)
        _fill(rows, batch, layout, codes)
        for name, count in _missing(rows, layout).items():
            missing[name] = (missing.get(name, (0, ""))[0] + count, missing.get(name, (0, where))[1])
        if layout.numbers and layout.missing is not None:
            np.nan_to_num(rows["numbers"], copy=False, nan=layout.missing, posinf=np.inf, neginf=-np.inf)
        write(rows)
        num_rows += len(rows)
        report(num_rows)
    _check(missing, codes, layout)
    if num_rows == 0:
        raise errors.ArgumentError("The table is empty. Received: 0 rows. Pass at least one row.")
    return {name: list(codes.codes.get(name, ())) for name in layout.texts}


def save_vocabularies(path: Path, texts: dict[str, list[str]]) -> None:
    path.write_text(json.dumps(texts), encoding="utf-8")


def load_vocabularies(path: Path) -> dict[str, list[str]]:
    return json.loads(path.read_text(encoding="utf-8"))


def _fill(rows: np.ndarray, batch: Any, layout: Layout, codes: Vocabularies) -> None:
    for place, name in enumerate(layout.numbers):
        rows["numbers"][:, place] = _numbers(batch.column(name), name)
    for place, name in enumerate(layout.categories):
        rows["categories"][:, place] = codes.encode(name, batch.column(name))
    for place, name in enumerate(layout.labels):
        if layout.label_kind == "text":
            values: np.ndarray = codes.encode(name, batch.column(name)) - np.int32(1)
        else:
            values = _numbers(batch.column(name), name)
        if layout.label_kind == "integer":
            values = _integers(values, name)
        target = rows["labels"]
        (target if target.ndim == 1 else target[:, place])[...] = values
    if layout.weight is not None:
        rows["weight"] = _numbers(batch.column(layout.weight), layout.weight)


def _numbers(values: Any, name: str) -> np.ndarray:
    """float64, missing values as NaN."""
    if hasattr(values, "dictionary_decode"):
        values = values.dictionary_decode()
    return values.cast("float64", safe=False).to_numpy(zero_copy_only=False)


def _integers(values: np.ndarray, name: str) -> np.ndarray:
    """int32; missing values as the least one, which stands for them until they are counted."""
    known = np.where(np.isnan(values), -_INT32, values)
    odd = known[(known != np.floor(known)) | (known < -_INT32) | (known >= _INT32)]
    if odd.size:
        raise errors.ArgumentError(
            f"The label column {name!r} begins with integers and goes on with {odd[0]}, which does not fit 32-bit integers. "
            'Pass `label_kind="number"` to read it as floats.'
        )
    return known.astype(np.int32)


def _missing(rows: np.ndarray, layout: Layout) -> dict[str, int]:
    """How many values are missing in each column where that is an error."""
    found: dict[str, int] = {}
    if layout.numbers and layout.missing is None:
        counts = np.isnan(rows["numbers"]).sum(axis=0)
        found |= {name: int(count) for name, count in zip(layout.numbers, counts, strict=True) if count}
    if layout.labels:
        labels = rows["labels"].reshape(len(rows), -1)
        absent = {"text": -1, "integer": -_INT32}.get(str(layout.label_kind))
        counts = (np.isnan(labels) if absent is None else labels == absent).sum(axis=0)
        found |= {name: int(count) for name, count in zip(layout.labels, counts, strict=True) if count}
    if layout.weight is not None and (count := int(np.isnan(rows["weight"]).sum())):
        found[layout.weight] = count
    return found


def _check(missing: dict[str, tuple[int, str]], codes: Vocabularies, layout: Layout) -> None:
    for name, text in codes.unknown.items():
        if name in layout.labels:
            raise errors.ArgumentError(
                f"The label column {name!r} holds {text!r}, which is not among the classes {list(codes.codes[name])[:10]}. "
                "Add it to `class_names`, or remove those rows."
            )
    if not missing:
        return
    shown = ", ".join(f"{count} in {name!r} (first in {where})" for name, (count, where) in missing.items())
    labels = [name for name in missing if name in layout.labels or name == layout.weight]
    cure = (
        f"Remove the rows without {', '.join(labels)}: a row without a label cannot be learned from."
        if labels
        else "Pass `missing`, a number to put in their place, or leave these columns out of `features`."
    )
    raise errors.ArgumentError(f"Values are missing: {shown}. {cure}")
