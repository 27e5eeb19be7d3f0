"""Tables in batches of rows, whatever they lie in: CSV and Parquet files, frames of pandas, polars and Arrow."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Sequence
from typing import Any

from memfit import errors
from memfit.data import file_lists
from memfit.data.optional import required

CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET = (".parquet", ".pq")
_BLOCK_BYTES = 2**20
_BATCH_ROWS = 2**14

Kinds = dict[str, str]
"""Column name -> "integer", "number", "flag", "text", "unknown" (nothing but missing values so far) or "other"."""

_NUMERIC = ("integer", "number", "flag", "unknown")


class Table(abc.ABC):
    """A table that can be read from its beginning as often as needed.

    Attributes:
        files: Paths, where it lies in files.
        kinds: What each column holds.
    """

    files: tuple[str, ...] = ()
    kinds: Kinds

    @abc.abstractmethod
    def batches(self, columns: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Where each batch of rows comes from, and the batch as a ``pyarrow.RecordBatch`` of ``columns``.

        Columns in ``texts`` come as texts, whatever they hold.
        """

    def check_alike(self, columns: Sequence[str], texts: Sequence[str]) -> None:  # noqa: B027
        """Raises ArgumentError where a column is missing from a file or changes its kind from file to file."""


class Frame(Table):
    """A frame in memory, read in slices of rows.

    Args:
        frame: Of pandas or polars, a ``pyarrow.Table``, or a dict of columns.
    """

    def __init__(self, frame: Any) -> None:
        self._arrow = _arrow()
        self._frame = frame
        if isinstance(frame, dict):
            self._frame = self._arrow.table(frame)
        self.kinds = _kinds_of(self._arrow, self._slice(0, _BATCH_ROWS).schema)
        if "unknown" in self.kinds.values() and len(self._frame) > _BATCH_ROWS:
            self.kinds = _kinds_of(self._arrow, self._slice(0, len(self._frame)).schema)

    def batches(self, columns: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for start in range(0, len(self._frame), _BATCH_ROWS):
            for batch in self._slice(start, start + _BATCH_ROWS).select(list(columns)).to_batches():
                yield "the frame", batch

    def _slice(self, start: int, stop: int) -> Any:
        frame = self._frame
        if hasattr(frame, "iloc"):
            return self._arrow.Table.from_pandas(frame.iloc[start:stop], preserve_index=False)
        part = frame.slice(start, stop - start)
        return part if isinstance(part, self._arrow.Table) else part.to_arrow()


class Files(Table):
    """CSV and Parquet files with the same columns.

    Args:
        files: Paths.
        delimiter: Between the values of a CSV file; None for a comma, or a tab in ``.tsv`` files.
    """

    def __init__(self, files: Sequence[str], delimiter: str | None = None) -> None:
        self._arrow = _arrow()
        self.files = tuple(files)
        self._delimiter = delimiter
        self._kinds_by_file = {path: self._kinds(path) for path in self.files}
        self.kinds = {}
        for kinds in self._kinds_by_file.values():
            for name, kind in kinds.items():
                if self.kinds.get(name, "unknown") == "unknown" or (self.kinds[name], kind) == ("integer", "number"):
                    self.kinds[name] = kind

    def check_alike(self, columns: Sequence[str], texts: Sequence[str]) -> None:
        for name in columns:
            for path, kinds in self._kinds_by_file.items():
                if name not in kinds:
                    raise errors.ArgumentError(
                        f"The columns change between files: {name!r} is missing from {path}, which has {list(kinds)}. "
                        "Make the files alike, leave the column out, or leave the file out."
                    )
                alike = name in texts or "unknown" in (kinds[name], self.kinds[name])
                if not alike and (kinds[name] in _NUMERIC) != (self.kinds[name] in _NUMERIC):
                    other = next(p for p, k in self._kinds_by_file.items() if k.get(name) == self.kinds[name])
                    raise errors.ArgumentError(
                        f"The columns change between files: {name!r} holds a {self.kinds[name]} in {other} and a "
                        f"{kinds[name]} in {path}. Make the files alike, or name the column in `categories` to read "
                        "it as texts."
                    )

    def batches(self, columns: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for path in self.files:
            try:
                for batch in self._batches(path, list(columns), texts):
                    yield path, batch
                self._arrow.default_memory_pool().release_unused()
            except self._arrow.ArrowInvalid as error:
                raise errors.MemfitError(
                    f"{path} cannot be read as a table: {str(error).splitlines()[0][:300]}. A column of numbers that holds "
                    "other words, too, is read as texts when it is named in `categories`; other damage is the file's."
                ) from error

    def _batches(self, path: str, columns: list[str], texts: Sequence[str]) -> Iterator[Any]:
        if _is_parquet(path):
            with required("pyarrow.parquet", extra="table", purpose="Parquet").ParquetFile(
                path, buffer_size=_BLOCK_BYTES, pre_buffer=False
            ) as file:
                yield from file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
            return
        arrow = self._arrow
        types = {name: arrow.string() for name in texts}
        types |= {name: arrow.float64() for name in columns if name not in texts and self.kinds[name] != "flag"}
        with self._csv(path, path, {}, include_columns=columns, column_types=types) as reader:
            yield from reader

    def _kinds(self, path: str) -> Kinds:
        try:
            if _is_parquet(path):
                schema = required("pyarrow.parquet", extra="table", purpose="Parquet").read_schema(path)
            else:
                schema = self._csv_schema(path)
        except self._arrow.ArrowInvalid as error:
            raise errors.ArgumentError(
                f"{path} cannot be read as a table: {str(error).splitlines()[0][:300]}. Remove it from the folder, or name "
                "the files to read."
            ) from error
        return _kinds_of(self._arrow, schema)

    def _csv_schema(self, path: str) -> Any:
        """What the first block tells. The reader is given no more than that: it reads tens of MiB ahead, unasked."""
        with self._arrow.input_stream(path) as file:
            block = file.read(_BLOCK_BYTES)
            last_line = block.rfind(b"\n") + 1
            is_cut = last_line > 0 and bool(file.read(1))
        # The last row may be half of one, where a text with a line break was cut.
        leave_out = {"invalid_row_handler": lambda row: "skip"} if is_cut else {}
        with self._csv(path, self._arrow.BufferReader(block[:last_line] if is_cut else block), leave_out) as reader:
            return reader.schema

    def _csv(self, path: str, source: Any, parse: dict[str, Any], **convert: Any) -> Any:
        csv = required("pyarrow.csv", extra="table", purpose="CSV")
        tabs = path.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = self._delimiter or ("\t" if tabs else ",")
        return csv.open_csv(
            source,
            read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, **parse),
            convert_options=csv.ConvertOptions(strings_can_be_null=True, **convert),
        )


def opened(source: Any, delimiter: str | None) -> Table:
    """The table that a user means.

    Raises:
        ArgumentError: It is no table, or there are no such files.
        MemfitError: pyarrow is not installed.
    """
    if isinstance(source, dict) or hasattr(source, "iloc") or hasattr(source, "schema"):
        return Frame(source)
    return Files(file_lists.listed(source, suffixes=CSV + PARQUET, argument="source"), delimiter)


def _arrow() -> Any:
    return required("pyarrow", extra="table", purpose="memfit.data.table")


def _is_parquet(path: str) -> bool:
    if path.lower().endswith(PARQUET):
        return True
    if path.lower().endswith(CSV):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _kinds_of(arrow: Any, schema: Any) -> Kinds:
    is_a = arrow.types

    def kind(type_: Any) -> str:
        if is_a.is_dictionary(type_):
            type_ = type_.value_type
        if is_a.is_boolean(type_):
            return "flag"
        if is_a.is_integer(type_):
            return "integer"
        if is_a.is_floating(type_) or is_a.is_decimal(type_):
            return "number"
        if is_a.is_string(type_) or is_a.is_large_string(type_) or is_a.is_string_view(type_):
            return "text"
        return "unknown" if is_a.is_null(type_) else "other"

    return {os.fspath(field.name): kind(field.type) for field in schema}
