"""``memfit.data.tfrecord``: TFRecord files of ``tf.train.Example`` by record, with and without TensorFlow installed."""

from __future__ import annotations

import gzip
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import file_lists, kept_files, offsets, pipeline_options, tfrecord_format
from memfit.data.broken_files import BrokenFiles, SkippedFile
from memfit.data.image_decoding import ImageReader, UnreadableImageError
from memfit.data.image_options import CHANNELS, ImageOptions
from memfit.data.offsets import RecordFiles, RecordIndex
from memfit.data.pipeline_options import Division, PipelineOptions
from memfit.data.progress import stderr_progress
from memfit.data.sample_source import SampleSource
from memfit.records import TensorSpec

Wanted = Mapping[str, tuple[str, tuple[int, ...]]]

_COLOR_MODES = {channels: mode for mode, channels in CHANNELS.items()}


def tfrecord(
    files: Any,
    features: Wanted,
    *,
    label: str | None = None,
    max_broken: int = 0,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    workers: int | None = None,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
) -> Any:
    """TFRecord files of ``tf.train.Example`` as a data set for ``fit``, ``evaluate`` and ``predict`` on every backend.

    The files are gone through once for where each record begins (16 bytes a record, kept in memfit's cache folder where
    there are many); then any record can be read, so that every epoch is a full permutation instead of a shuffle buffer.
    TensorFlow is not needed. Files compressed with GZIP, which have no random access, are decompressed once into the cache
    folder.

    Args:
        files: A TFRecord file, a pattern, a folder, or a list of them.
        features: Name -> (dtype, shape) of each feature to read, every record the same: ``{"x": ("float32", (28, 28)),
            "label": ("int64", ())}``. A feature of bytes with the dtype of a number is its raw bytes; ("image", (height,
            width, channels)) decodes a JPEG, PNG, WebP, BMP or GIF image and resizes it to float32 from 0 to 255.
        label: The feature that is the target; the others are ``x``: the one there is, or a dict of them.
        max_broken: How many files may be cut off: the records before the cut are used, and the file is among ``skipped``.
        batch_size: Samples of a batch. The last one of an epoch has the rest.
        shuffle: Whether every epoch takes the records in a new order, a permutation of all of them.
        seed: Makes the order of every epoch and the split repeatable; drawn from Python's ``random`` if left out.
        validation_split: Share of the records for validation.
        subset: "training", "validation", or "both" for a tuple of the two; needed with ``validation_split``.
        workers: Threads that read and parse; 2 if left out.
        max_queue_size: Batches made ahead.
        max_queue_bytes: Bytes of batches ahead.

    Raises:
        ArgumentError: A feature does not exist or has another size, or an argument cannot work.
        MemfitError: A file is no TFRecord file, or cut off.
    """
    wanted = _checked(features, label)
    paths = file_lists.listed(files, suffixes=(".tfrecord", ".tfrecords", ".gz", ".tfrec"))
    paths = [_decompressed(path) if tfrecord_format.is_gzip(path) else path for path in paths]
    broken = BrokenFiles(len(paths) + 1, max_broken=max_broken)
    index = offsets.indexed(paths, _spans(paths, broken), "tfrecord")
    broken.warn()
    if not len(index):
        raise errors.ArgumentError(f"The data is empty. Received: {len(paths)} files without a record.")
    examples = Examples(index, wanted, label)
    examples([0])
    spec = structure_of({name: _spec(*kind) for name, kind in wanted.items()}, label)
    division = Division(validation_split, subset, seed)
    options = PipelineOptions(
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=2 if workers is None else workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
    )
    source = SampleSource(
        len(index), examples, spec=spec, name=examples.name, held_bytes=index.held_bytes, skipped=broken.skipped
    )
    from memfit.data.pipeline import divided  # Imports Keras, which takes seconds: last.

    return divided(source, options, division)


class Examples:
    """Reads and parses records by number. Safe to use from several threads.

    Args:
        index: Where they are.
        wanted: Features to read.
        label: Which of them is the target.
    """

    def __init__(self, index: RecordIndex, wanted: Wanted, label: str | None) -> None:
        self._index = index
        self._files = RecordFiles(index.files)
        self._wanted = dict(wanted)
        self._label = label
        self._images = {name: _image_reader(shape) for name, (kind, shape) in wanted.items() if kind == "image"}

    def name(self, number: int) -> str:
        """A record as an error names it."""
        record = self._index.records[number]
        return f"The record at byte {int(record['start'])} of {self._index.files[record['file']]}"

    def __call__(self, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        return [structure_of(self._values(number), self._label) for number in numbers]

    def _values(self, number: int) -> dict[str, np.ndarray]:
        file, length, start = self._index.records[number].tolist()
        data = self._files.read(file, start, length)
        try:
            if len(data) < length:
                raise ValueError("the file has become shorter")
            found = tfrecord_format.parse_example(data)
        except (ValueError, UnicodeDecodeError) as error:
            raise errors.MemfitError(f"{self.name(number)} cannot be read: {error}. Copy the file again.") from error
        return {name: self._value(found, name, number) for name in self._wanted}

    def _value(self, found: tfrecord_format.Features, name: str, number: int) -> np.ndarray:
        if name not in found:
            raise errors.ArgumentError(
                f"`features`: {self.name(number)} has no feature {name!r}. It has: {sorted(found)}"
            )
        kind, shape = self._wanted[name]
        values = found[name]
        if kind == "image":
            return self._image(values, name, number)
        if isinstance(values, list):
            values = np.frombuffer(b"".join(values), _stored(kind, b"".join(values)))
        if values.size != math.prod(shape):
            raise errors.ArgumentError(
                f"`features`: {name!r} of {self.name(number).lower()} has {values.size} values of {values.dtype}. "
                f"Received: ({kind!r}, {shape}), which is {math.prod(shape)}. Name the shape that is stored."
            )
        return values.reshape(shape)

    def _image(self, values: Any, name: str, number: int) -> np.ndarray:
        try:
            if not isinstance(values, list) or len(values) != 1:
                raise UnreadableImageError("not one string of bytes")
            return self._images[name].decode(values[0])
        except UnreadableImageError as error:
            raise errors.MemfitError(f"{self.name(number)} holds no image as {name!r}: {error}.") from error


def structure_of(values: Mapping[str, Any], label: str | None) -> tuple[Any, ...]:
    """``(x,)`` or ``(x, y)`` of named values; ``x`` is a dict where there are several.

    Example:
        >>> structure_of({"a": 1, "b": 2}, "b")
        (1, 2)
    """
    inputs = {name: value for name, value in values.items() if name != label}
    x = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return (x,) if label is None else (x, values[label])


def _checked(features: Any, label: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        wanted = {
            str(name): (str(kind), tuple(int(side) for side in shape)) for name, (kind, shape) in features.items()
        }
        for kind, shape in wanted.values():
            if kind == "image" and (len(shape) != 3 or shape[2] not in _COLOR_MODES):
                raise TypeError
            if kind != "image" and np.dtype(kind).kind not in "fiub":
                raise TypeError
    except (AttributeError, TypeError, ValueError):
        wanted = {}
    if not wanted or (label is not None and (label not in wanted or len(wanted) == 1)):
        raise errors.ArgumentError(
            "`features` must say the dtype and shape of each feature: {'x': ('float32', (28, 28)), 'label': ('int64', ())}, "
            "or ('image', (height, width, channels)); `label` is one of them beside others. "
            f"Received: features={features!r}, label={label!r}"
        )
    return wanted


def _spec(kind: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(shape, "float32" if kind == "image" else str(np.dtype(kind)))


def _stored(kind: str, data: bytes) -> str:
    """The dtype of raw bytes; one that does not go into them makes them bytes, whose number the error then says."""
    return kind if len(data) % np.dtype(kind).itemsize == 0 else "uint8"


def _image_reader(shape: tuple[int, ...]) -> ImageReader:
    height, width, channels = shape
    return ImageReader(ImageOptions(image_size=(height, width), color_mode=_COLOR_MODES[channels]))


def _spans(paths: Sequence[str], broken: BrokenFiles) -> Iterator[tuple[int, int, int]]:
    report = stderr_progress(f"finding the records of {len(paths)} files", "records")
    count = 0
    for place, path in enumerate(paths):
        try:
            for start, length in tfrecord_format.spans(path):
                count += 1
                report(count)
                yield place, start, length
        except errors.MemfitError as error:
            broken.add(place, SkippedFile(path, str(error)))


def _decompressed(path: str) -> str:
    """The path of a file of the cache folder with what a compressed file holds."""
    folder = kept_files.folder("decompressed")
    first, second = kept_files.names([path], "gzip")
    target = folder / f"{first}-{second}.tfrecord"
    if not target.exists():
        kept_files.check_room(folder, 4 * os.path.getsize(path), cure="Free some, or set MEMFIT_CACHE_DIR.")
        with kept_files.draft(target) as draft:
            _decompress(path, draft)
        kept_files.remove_others(target, first)
    return str(target)


def _decompress(path: str, target: Path) -> None:
    try:
        with gzip.open(path, "rb") as packed, open(target, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
    except (EOFError, gzip.BadGzipFile) as error:
        raise errors.MemfitError(f"{path} cannot be decompressed: {error}. Copy it again, or leave it out.") from error
