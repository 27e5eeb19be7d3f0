"""``memfit.data.table``: CSV and Parquet files of any size, and frames, as a data set of full random access.

Neither format can give row number 31,415,926 without reading what is before it. So the table is read once, in bounded
memory, into a file of rows of fixed size (``row_file.py``), and every batch of every epoch is gathered from that.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memfit import errors, units
from memfit.data import kept_files, pipeline_options, table_files, table_rows
from memfit.data.pipeline_options import Division, PipelineOptions
from memfit.data.progress import stderr_progress
from memfit.data.row_file import RowFile, RowWriter
from memfit.data.source import Draft, Source
from memfit.data.table_files import Table
from memfit.data.table_rows import Layout
from memfit.records import TensorSpec

_LABEL_KINDS = (None, "integer", "number", "text")


class TableSource(Source):
    """Rows of a table.

    Args:
        rows: The rows, in a file or in memory.
        layout: What a row holds.
        texts: Column -> its texts in the order of their codes.
        as_dict: Whether features go by name.
        fixed: Columns whose texts are in their final order; those of the others are put in alphabetical order.

    Attributes:
        vocabularies: Column -> its texts; the feature's value is an index into them. 0 is a missing or unknown text.
        feature_names: In the order of the matrix, where features are one.
    """

    def __init__(
        self,
        rows: RowFile | np.ndarray,
        layout: Layout,
        texts: dict[str, list[str]],
        *,
        as_dict: bool,
        fixed: Collection[str],
    ) -> None:
        self._rows = rows
        self._layout = layout
        self._as_dict = as_dict
        self.num_samples = len(self._table)
        ordered = {name: list(texts[name]) if name in fixed else sorted(texts[name]) for name in layout.texts}
        self._ranks = {name: _ranks(texts[name], ordered[name]) for name in layout.texts}
        self.class_names = ordered[layout.labels[0]] if layout.label_kind == "text" else []
        self.vocabularies = {name: ["", *ordered[name]] for name in layout.categories}
        self.feature_names = [*layout.numbers, *layout.categories]
        self.spec = self._spec()

    @property
    def classes(self) -> np.ndarray | None:  # type: ignore[override]
        """The labels, where they are classes; read from the file when asked for."""
        if self._layout.label_kind in ("text", "integer") and len(self._layout.labels) == 1:
            return np.array(self._table["labels"])
        return None

    @property
    def _table(self) -> np.ndarray:
        return self._rows.rows if isinstance(self._rows, RowFile) else self._rows

    @property
    def reading_bytes(self) -> int:
        return 2 * 2**20

    @property
    def held_bytes(self) -> int:
        held = 0 if isinstance(self._rows, RowFile) else self._rows.nbytes
        return held + sum(ranks.nbytes for ranks in self._ranks.values())

    def begin(self, samples: np.ndarray, *, seed: int, epoch: int) -> Draft:
        rows = np.empty(len(samples), self._table.dtype)

        def read(start: int, stop: int) -> None:
            if isinstance(self._rows, RowFile):
                self._rows.ask(samples[start:stop])
            np.take(self._table, samples[start:stop], out=rows[start:stop], mode="clip")

        return Draft(read, lambda: self._batch(rows), least_rows=256)

    def _batch(self, rows: np.ndarray) -> Any:
        layout = self._layout
        parts: list[Any] = [self._features(rows)]
        if layout.labels:
            labels = rows["labels"]
            parts.append(self._ranks[layout.labels[0]][labels + 1] if layout.label_kind == "text" else labels.copy())
            if layout.label_kind == "text":
                parts[-1] -= 1
        if layout.weight is not None:
            parts.append(rows["weight"].copy())
        return tuple(parts) if len(parts) > 1 else parts[0]

    def _features(self, rows: np.ndarray) -> Any:
        layout = self._layout
        codes = [self._ranks[name][rows["categories"][:, place]] for place, name in enumerate(layout.categories)]
        if self._as_dict:
            features = {name: rows["numbers"][:, place, None].copy() for place, name in enumerate(layout.numbers)}
            return features | {name: code[:, None] for name, code in zip(layout.categories, codes, strict=True)}
        matrix = np.empty((len(rows), len(self.feature_names)), np.float32)
        if layout.numbers:
            matrix[:, : len(layout.numbers)] = rows["numbers"]
        for place, code in enumerate(codes, len(layout.numbers)):
            matrix[:, place] = code
        return matrix

    def _spec(self) -> tuple[Any, ...]:
        layout = self._layout
        x: Any = TensorSpec((len(self.feature_names),), "float32")
        if self._as_dict:
            x = {name: TensorSpec((1,), "float32") for name in layout.numbers}
            x |= {name: TensorSpec((1,), "int32") for name in layout.categories}
        parts = [x]
        if layout.labels:
            shape = (len(layout.labels),) if len(layout.labels) > 1 else ()
            parts.append(TensorSpec(shape, "float32" if layout.label_kind == "number" else "int32"))
        if layout.weight is not None:
            parts.append(TensorSpec((), "float32"))
        return tuple(parts)


def table(
    source: Any,
    *,
    label: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    categories: Sequence[str] = (),
    sample_weight: str | None = None,
    as_dict: bool | None = None,
    label_kind: str | None = None,
    class_names: Sequence[str] | None = None,
    vocabularies: dict[str, Sequence[str]] | None = None,
    missing: float | None = None,
    max_categories: int = 10_000,
    delimiter: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    workers: int | None = None,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
) -> Any:
    """CSV and Parquet files larger than memory, or a frame, as a data set for ``fit``, ``evaluate`` and ``predict``.

    Files are read once, in bounded memory, into a file of fixed-size rows in memfit's cache folder: numbers as float32, texts
    as codes. Every batch is gathered from that, so that each epoch is a full permutation. The file is kept, and used again
    by the next run while the sources and the columns are the same. Needs pyarrow: ``pip install 'memfit[table]'``.

    Args:
        source: A CSV, TSV or Parquet file, a pattern, a folder, a list of them; or a frame of pandas or polars, a
            ``pyarrow.Table``, or a dict of columns. Every file has the same columns.
        label: Column to predict. Texts become classes in alphabetical order (int32, ``class_names``), integers int32, other
            numbers float32. Several columns become one float32 vector.
        features: Columns to predict from; all others if left out.
        categories: Features to read as texts though they hold numbers. Columns of texts always are.
        sample_weight: Column of weights.
        as_dict: Whether features come as a dict of columns, each of shape (batch_size, 1), instead of one float32 matrix.
            Left out: where some are categories.
        label_kind: "integer", "number" or "text", where the column does not tell.
        class_names: The classes of a label of texts: fixes them where a file may lack one.
        vocabularies: Column -> texts, such as ``training.source.vocabularies``: gives validation files the same codes.
        missing: Number to put where a feature is missing. Left out, that is an error.
        max_categories: A column of more different texts is an error.
        delimiter: Between the values of a CSV file.
        cache_dir: Where the file of rows is kept, instead of memfit's cache folder.
        batch_size: Samples of a batch. The last one of an epoch has the rest.
        shuffle: Whether every epoch takes the rows in a new order, a permutation of all of them.
        seed: Makes the order of every epoch and the split repeatable; drawn from Python's ``random`` if left out.
        validation_split: Share of the rows for validation; the same share of every class.
        subset: "training", "validation", or "both" for a tuple of the two; needed with ``validation_split``.
        workers: Threads that gather; 0 for a frame and 2 for files if left out.
        max_queue_size: Batches gathered ahead.
        max_queue_bytes: Bytes of batches ahead.

    Raises:
        ArgumentError: A column does not exist or changes from file to file, values are missing, or an argument cannot work.
        MemfitError: pyarrow is not installed, a file is damaged, or the disk is full.

    Example:
        >>> frame = {"age": [30, 41, 25], "city": ["Bonn", "Kiel", "Bonn"], "bought": ["yes", "no", "no"]}
        >>> dataset = table(frame, label="bought", batch_size=3, shuffle=False)
        >>> x, y = dataset[0]
        >>> x["age"].ravel().tolist(), x["city"].ravel().tolist(), y.tolist()
        ([30.0, 41.0, 25.0], [1, 2, 1], [1, 0, 0])
        >>> dataset.class_names, dataset.source.vocabularies
        (['no', 'yes'], {'city': ['', 'Bonn', 'Kiel']})
    """
    opened = table_files.opened(source, delimiter)
    layout = _layout(
        opened,
        _Wanted(label, features, categories, sample_weight, label_kind),
        missing=missing,
        max_categories=max_categories,
    )
    fixed = {name: tuple(texts) for name, texts in (vocabularies or {}).items() if name in layout.categories}
    fixed = {name: texts[1:] if texts[:1] == ("",) else texts for name, texts in fixed.items()}
    if class_names is not None and layout.label_kind == "text":
        fixed[layout.labels[0]] = tuple(class_names)
    division = Division(validation_split, subset, seed)
    options = PipelineOptions(
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=(2 if opened.files else 0) if workers is None else workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
    )
    rows, texts = _in_file(opened, layout, fixed, cache_dir) if opened.files else _in_memory(opened, layout, fixed)
    as_dict = bool(layout.categories) if as_dict is None else as_dict
    made = TableSource(rows, layout, texts, as_dict=as_dict, fixed=fixed)
    _check_classes(made, layout, named=class_names is not None)

    from memfit.data.pipeline import divided  # Imports Keras, which takes seconds: last.

    return divided(made, options, division)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The columns as a user names them."""

    label: str | Sequence[str] | None
    features: Sequence[str] | None
    categories: Sequence[str]
    sample_weight: str | None
    label_kind: str | None


def _layout(opened: Table, wanted: _Wanted, *, missing: float | None, max_categories: int) -> Layout:
    labels = (wanted.label,) if isinstance(wanted.label, str) else tuple(wanted.label or ())
    others = {*labels, wanted.sample_weight}
    features = tuple(name for name in opened.kinds if name not in others)
    if wanted.features is not None:
        features = tuple(wanted.features)
    named: dict[str, Sequence[str]] = {
        "label": labels,
        "features": features,
        "categories": tuple(wanted.categories),
        "sample_weight": () if wanted.sample_weight is None else (wanted.sample_weight,),
    }
    for argument, names in named.items():
        absent = [name for name in names if name not in opened.kinds]
        if absent:
            raise errors.ArgumentError(
                f"`{argument}`: the table has no column {', '.join(map(repr, absent))}. It has: {list(opened.kinds)}. "
                f"Received: {argument}={getattr(wanted, argument)!r}"
            )
    if not features:
        raise errors.ArgumentError(f"`features` must name a column. Received: none, of {list(opened.kinds)}.")
    pipeline_options.require_choice("label_kind", wanted.label_kind, _LABEL_KINDS)
    pipeline_options.require_integer("max_categories", max_categories, least=1)
    is_text = {name for name in features if opened.kinds[name] == "text" or name in wanted.categories}
    label_kind = _label_kind(opened, labels, wanted.label_kind)
    used = (*features, *named["sample_weight"], *labels)
    strange = [name for name in used if opened.kinds[name] == "other" and name not in is_text]
    if strange:
        raise errors.ArgumentError(
            f"Columns {strange} hold neither numbers nor texts. Name the others in `features`, or turn these into numbers; "
            f"dates may be read as texts by naming them in `categories`. Received: features={wanted.features!r}"
        )
    layout = Layout(
        numbers=tuple(name for name in features if name not in is_text),
        categories=tuple(name for name in features if name in is_text),
        labels=labels,
        label_kind=label_kind,
        weight=wanted.sample_weight,
        missing=missing,
        max_categories=max_categories,
    )
    opened.check_alike(layout.columns, layout.texts)
    return layout


def _label_kind(opened: Table, labels: tuple[str, ...], wanted: str | None) -> str | None:
    if not labels:
        return None
    kinds = {opened.kinds[name] for name in labels}
    if len(labels) > 1:
        if kinds & {"text", "other"} or wanted not in (None, "number"):
            raise errors.ArgumentError(
                f"Several labels make a vector of numbers. Received: label={list(labels)} with {sorted(kinds)}. "
                "Turn them into numbers, 0 or 1 for several classes at once, or name one."
            )
        return "number"
    return wanted or {"flag": "integer", "unknown": "number", "other": "text"}.get(*kinds, *kinds)


def _in_memory(opened: Table, layout: Layout, fixed: dict[str, Any]) -> tuple[np.ndarray, dict[str, list[str]]]:
    file = io.BytesIO()
    writer = RowWriter(file, layout.dtype)
    texts = table_rows.convert(opened, layout, writer.append, vocabularies=fixed, report=lambda num_rows: None)
    writer.finish()
    start = file.getbuffer().nbytes - writer.num_rows * layout.dtype.itemsize
    return np.frombuffer(file.getbuffer(), layout.dtype, offset=start), texts


def _in_file(
    opened: Table, layout: Layout, fixed: dict[str, Any], cache_dir: Any
) -> tuple[RowFile, dict[str, list[str]]]:
    folder = kept_files.folder("tables", cache_dir)
    first, second = kept_files.names(opened.files, (table_rows.VERSION, layout, opened.kinds, sorted(fixed.items())))
    path = folder / f"{first}-{second}.npy"
    words = path.with_suffix(".json")
    if not (path.exists() and words.exists()):
        size = sum(os.path.getsize(file) for file in opened.files)
        kept_files.check_room(folder, size, cure="Free some, or pass another folder as `cache_dir`.")
        report = stderr_progress(f"reading {len(opened.files)} files once into {folder}", "rows")
        with kept_files.draft(path) as draft:
            with open(draft, "wb") as file:
                writer = RowWriter(file, layout.dtype)
                texts = table_rows.convert(opened, layout, writer.append, vocabularies=fixed, report=report)
                writer.finish()
            with kept_files.draft(words) as words_draft:
                table_rows.save_vocabularies(words_draft, texts)
        kept_files.remove_others(path, first)
        _say_where(path)
    return RowFile(path), table_rows.load_vocabularies(words)


def _say_where(path: Path) -> None:
    size = path.stat().st_size
    if size >= 64 * units.MIB:
        print(f"memfit: wrote {units.text(size)} of rows to {path}, kept for the next run", file=sys.stderr)


def _ranks(texts: list[str], ordered: list[str]) -> np.ndarray:
    """Code -> place in the final order, from 1; 0 stays 0."""
    place = {text: rank for rank, text in enumerate(ordered, 1)}
    return np.array([0, *(place[text] for text in texts)], np.int32)


def _check_classes(made: TableSource, layout: Layout, *, named: bool) -> None:
    if layout.label_kind == "text" and len(made.class_names) == 1:
        message = f"The label column {layout.labels[0]!r} holds a single class: {list(made.class_names)}."
        if not named:
            raise errors.ArgumentError(
                f"{message} There is nothing to learn from it. Was another column meant? "
                "Pass `class_names` to say that one class is right."
            )
        warnings.warn(f"memfit: {message}", stacklevel=3)
