"""``memfit.data.image_table``: images whose paths and targets stand in a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import image_pipeline, pipeline_options, table_files
from memfit.data.broken_files import SkippedFile
from memfit.data.file_table import Annotations, FileTable
from memfit.data.folder_scan import FolderScan
from memfit.data.image_options import ImageOptions
from memfit.data.pipeline_options import Division
from memfit.data.progress import stderr_progress
from memfit.data.table_files import Table


def image_table(
    source: Any,
    path_column: str,
    label_column: str | Sequence[str] | None = None,
    *,
    directory: str | os.PathLike[str] = "",
    mask_column: str | None = None,
    separator: str | None = None,
    class_names: Sequence[str] | None = None,
    label_mode: str = "int",
    image_size: tuple[int, int] = (150, 150),
    color_mode: str = "rgb",
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    rescale: float | None = None,
    interpolation: str = "bilinear",
    workers: int | None = None,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
    max_broken: int | None = None,
    mask_values: Sequence[int] | None = None,
    augmentation: Any = None,
    cache: str | None = None,
) -> Any:
    """Images named by a table, with classes, numbers, several labels at once or masks to predict.

    What is not said here is as for ``image_folder``. Needs pyarrow: ``pip install 'memfit[table]'``.

    Args:
        source: A CSV or Parquet file, a frame of pandas or polars, or a dict of columns.
        path_column: Column of the images' paths.
        label_column: Texts are classes (``label_mode`` says how they come); numbers are predicted as float32; several columns
            are a float32 vector: several numbers, or 0 and 1 for several labels at once.
        directory: What paths that are not absolute start from.
        mask_column: Column of the masks' paths, in the place of labels.
        separator: What stands between the classes of an image in ``label_column``, such as " ": several labels at once, one
            float32 vector of 0 and 1.
        class_names: The classes, in the order of the labels; all, sorted, if left out.
        label_mode: "int", "categorical" or "binary", for classes.
        image_size: (height, width).
        color_mode: "rgb", "grayscale" or "rgba".
        batch_size: Images of a batch.
        shuffle: Whether every epoch has an order of its own.
        seed: Makes orders and the split repeatable.
        validation_split: Share of every class for validation.
        subset: "training", "validation" or "both".
        rescale: Factor for the values.
        interpolation: "bilinear", "nearest" or "bicubic".
        workers: Threads that decode.
        max_queue_size: Batches decoded ahead.
        max_queue_bytes: Bytes of batches ahead.
        max_broken: More unreadable or missing files than this are an error.
        mask_values: The value of each class in the masks.
        augmentation: As for ``image_folder``.
        cache: As for ``image_folder``.

    Raises:
        ArgumentError: A column does not exist or cannot be a label, or an argument cannot work.
        MemfitError: More files than ``max_broken`` cannot be read, or none can, or pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> from memfit.data.synthetic_images import write_image_folder
        >>> folder = write_image_folder(tempfile.mkdtemp(), num_images=4, num_classes=2)
        >>> paths = sorted(str(path) for path in folder.rglob("*.jpg"))
        >>> dataset = image_table({"file": paths, "angle": [0.1, 0.2, 0.3, 0.4]}, "file", "angle", shuffle=False)
        >>> images, angles = dataset[0]
        >>> images.shape, angles.tolist() == np.float32([0.1, 0.2, 0.3, 0.4]).tolist()
        ((4, 150, 150, 3), True)
    """
    options = ImageOptions(
        image_size=image_size,
        batch_size=batch_size,
        label_mode=label_mode,
        color_mode=color_mode,
        interpolation=interpolation,
        rescale=rescale,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=min(8, pipeline_options.usable_cores()) if workers is None else workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
        max_broken=max_broken,
        augmentation=augmentation,
        cache=cache,
        mask_values=None if mask_values is None else tuple(mask_values),
    )
    image_pipeline.check_masks(options, mask_column)
    division = Division(validation_split, subset, seed)
    table = table_files.opened(source, None)
    columns = _Columns(table, path_column, label_column, mask_column)
    listed = columns.read(os.fspath(directory), stderr_progress("reading the paths of images", "rows"))
    labels, annotations = columns.annotated(listed, os.fspath(directory), separator, class_names)
    if annotations.targets is None and mask_column is None and label_column is None:
        options = ImageOptions(**{**vars(options), "label_mode": None})
    if annotations.class_names and label_mode == "binary" and len(annotations.class_names) != 2:
        raise errors.ArgumentError(
            f'`label_mode="binary"` needs exactly two classes. Received: {list(annotations.class_names)[:10]}.'
        )
    files = FileTable(os.fspath(directory), (), listed.paths, labels, annotations)
    return image_pipeline.datasets(FolderScan(files, listed.sizes, tuple(listed.skipped)), options, division)


class _Listed:
    """Rows of the table whose image is there."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.masks: list[str] = []
        self.values: list[Any] = []
        self.skipped: list[SkippedFile] = []
        self._sizes: list[int] = []

    def add(self, directory: str, path: str, mask: str | None, value: Any) -> None:
        full = os.path.join(directory, path)
        try:
            size = os.stat(full).st_size
        except OSError as error:
            self.skipped.append(SkippedFile(full, error.strerror or type(error).__name__))
            return
        if size == 0:
            self.skipped.append(SkippedFile(full, "the file is empty"))
            return
        self.paths.append(path)
        self.values.append(value)
        self._sizes.append(size)
        if mask is not None:
            self.masks.append(mask)

    @property
    def sizes(self) -> np.ndarray:
        return np.array(self._sizes, np.int64)


class _Columns:
    """The columns of a table that say which images there are, and what is to be predicted.

    Raises:
        ArgumentError: One does not exist, or cannot be what it is named for.
    """

    def __init__(self, table: Table, path: str, label: str | Sequence[str] | None, mask: str | None) -> None:
        self._table = table
        self._path, self._mask = path, mask
        self._labels = () if label is None else (label,) if isinstance(label, str) else tuple(label)
        named = {"path_column": (path,), "label_column": self._labels, "mask_column": () if mask is None else (mask,)}
        for argument, names in named.items():
            absent = [name for name in names if name not in table.kinds]
            if absent:
                raise errors.ArgumentError(
                    f"`{argument}`: the table has no column {', '.join(map(repr, absent))}. It has: {list(table.kinds)}. "
                    f"Received: {argument}={list(names)}"
                )
        if self._labels and mask is not None:
            raise errors.ArgumentError(
                f"Pass `label_column` or `mask_column`, not both. Received: {label!r} and {mask!r}."
            )
        kinds = [table.kinds[name] for name in self._labels]
        self._numeric = bool(kinds) and not {"text", "other"}.intersection(kinds)
        if len(kinds) > 1 and not self._numeric:
            raise errors.ArgumentError(
                f"Several label columns must hold numbers. Received: {dict(zip(self._labels, kinds, strict=True))}. "
                "Classes that stand in one column, with something between them, are read with `separator`."
            )

    def read(self, directory: str, report: Callable[[int], None]) -> _Listed:
        """The rows whose images are there."""
        listed = _Listed()
        masks = () if self._mask is None else (self._mask,)
        texts = (self._path, *masks, *(() if self._numeric else self._labels))
        columns = tuple(dict.fromkeys((self._path, *masks, *self._labels)))
        self._table.check_alike(columns, texts)
        count = 0
        for where, batch in self._table.batches(columns, texts):
            values = [batch.column(name).to_pylist() for name in columns]
            for row in zip(*values, strict=True):
                count += 1
                entry = dict(zip(columns, row, strict=True))
                missing = [name for name, value in entry.items() if value is None or value != value]
                if missing:
                    raise errors.ArgumentError(
                        f"Row {count} of {where} has nothing in {missing}. Remove such rows, or fill them in."
                    )
                value = tuple(entry[name] for name in self._labels)
                listed.add(directory, str(entry[self._path]), None if self._mask is None else entry[self._mask], value)
                report(count)
        if not listed.paths:
            first = f", such as {listed.skipped[0].path!r}" if listed.skipped else ""
            raise errors.ArgumentError(
                f"None of the {count} images of the table is there{first}. "
                f"Received: directory={directory!r}. Paths start from `directory`."
            )
        return listed

    def annotated(
        self, listed: _Listed, directory: str, separator: str | None, class_names: Sequence[str] | None
    ) -> tuple[np.ndarray, Annotations]:
        """The class of each image, or 0, and what else is known of it."""
        none = np.zeros(len(listed.paths), np.int32)
        if self._mask is not None:
            return none, Annotations((), masks=FileTable(directory, (), listed.masks, none))
        if not self._labels:
            return none, Annotations(())
        if self._numeric:
            targets = np.array(listed.values, np.float32)
            return none, Annotations((), targets[:, 0] if len(self._labels) == 1 else targets)
        texts = [str(value) for (value,) in listed.values]
        several = [[text] if separator is None else [part for part in text.split(separator) if part] for text in texts]
        names = sorted({name for parts in several for name in parts}) if class_names is None else list(class_names)
        place = {name: number for number, name in enumerate(names)}
        unknown = next((name for parts in several for name in parts if name not in place), None)
        if unknown is not None or (len(names) < 2 and class_names is None):
            reason = "holds a single class" if unknown is None else f"holds {unknown!r}, which is not among the classes"
            raise errors.ArgumentError(
                f"`label_column`: {self._labels[0]!r} {reason}: {names[:10]}. Pass `class_names` to say which there are. "
                f"Received: class_names={class_names!r}"
            )
        if separator is None:
            return np.array([place[parts[0]] for parts in several], np.int32), Annotations(tuple(names))
        targets = np.zeros((len(several), len(names)), np.float32)
        for row, parts in enumerate(several):
            targets[row, [place[part] for part in parts]] = 1
        return none, Annotations(tuple(names), targets)
