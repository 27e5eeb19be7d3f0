"""Images of a folder as a source of samples, and as a ``keras.utils.PyDataset``.

Imports Keras: only imported when a data set is made.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from memfit.data import image_cache, shuffling
from memfit.data.augmentation import Augmentation
from memfit.data.broken_files import BrokenFiles, SkippedFile
from memfit.data.file_table import FileTable
from memfit.data.image_decoding import ImageReader, UnreadableImageError, drawn_change, finish
from memfit.data.image_masks import MaskReader
from memfit.data.image_options import ImageOptions
from memfit.data.image_transform import Transform
from memfit.data.layer_augmentation import BatchFunction
from memfit.data.pipeline import Pipeline
from memfit.data.source import Draft, Source
from memfit.records import TensorSpec

_LEFT_BY_LISTING = 8
"""Bytes of a file: its size, of use while data sets are made, which the C library may keep on its heap afterwards."""


class ImageSource(Source):
    """Image files, decoded when they are asked for.

    Args:
        files: What to read.
        options: How to read it.
        reader: Decodes files.
        broken: Files found broken before.
    """

    def __init__(self, files: FileTable, options: ImageOptions, reader: ImageReader, broken: BrokenFiles) -> None:
        self.files = files
        self.reader = reader
        self.num_samples = len(files)
        self.class_names = files.class_names
        self.classes = files.labels
        self._options = options
        self._broken = broken
        self._change_batch = _batch_function(options)
        choice = image_cache.chosen(options.cache, files, reader, room=image_cache.free_room())
        self._cache, self.cache_reason = image_cache.made(choice, files, reader)
        self._masks = None if files.annotations.masks is None else MaskReader(options.image_size, options.mask_values)
        self.spec = (self._image_spec(), *_label_spec(options, files))

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        return self._broken.skipped

    @property
    def held_bytes(self) -> int:
        listed = self.files.num_bytes + _LEFT_BY_LISTING * self.num_samples
        return listed + (0 if self._cache is None else self._cache.held_bytes)

    @property
    def growing_bytes(self) -> int:
        return 0 if self._cache is None else self._cache.growing_bytes

    def give_back(self, num_bytes: int) -> int:
        return 0 if self._cache is None else self._cache.give_back(num_bytes)

    def fill_again(self) -> None:
        if self._cache is not None:
            self._cache.fill_again()

    def bound(self, room: int) -> str:
        """Chooses the cache anew for this room, where memfit is free to and it holds nothing yet."""
        cache = self._cache
        if self._options.cache == "auto" and not (cache is not None and cache.is_begun):
            choice = image_cache.chosen("auto", self.files, self.reader, room=room)
            self.cache_reason = choice.reason
            if choice.kind != (None if cache is None else cache.kind):
                self._cache, self.cache_reason = image_cache.made(choice, self.files, self.reader)
        return "" if self._options.cache is None else self.cache_reason

    @property
    def reading_bytes(self) -> int:
        """What decoding the largest file read so far took, and what an augmentation makes of an image, or of a batch."""
        image = 4 * math.prod(self._options.image_shape)
        if self._change_batch is not None:
            image *= self._options.batch_size  # Before the change; what the user's function takes beside is its own.
        return self.reader.most_bytes + (0 if self._options.augmentation is None else 2 * image)

    def report(self) -> None:
        self._broken.warn()

    def begin(self, samples: np.ndarray, *, seed: int, epoch: int) -> Draft:
        images = np.empty((len(samples), *self._options.image_shape), np.float32)
        used = samples.copy()
        masks = None if self._masks is None else np.empty((len(samples), *self._options.image_size, 1), np.uint8)
        changed = [images]
        rows_left, lock = len(samples), threading.Lock()

        def read(start: int, stop: int) -> None:
            nonlocal rows_left
            # Drawn for all of them first: between the decoding of two images the processor forgets how, and takes many times
            # as long.
            keys = [(seed, epoch, sample) for sample in samples[start:stop].tolist()]
            changes = [drawn_change(self._options, key) for key in keys]
            for row, (key, change) in enumerate(zip(keys, changes, strict=True), start):
                mask = None if masks is None else masks[row]
                used[row] = self._read(key, change, images[row], mask)
            with lock:
                rows_left -= stop - start
                is_last = rows_left == 0
            # By the thread that reads the last row, and not where the batch is handed over, so that it is done ahead, too.
            if is_last and self._change_batch is not None:
                changed[0] = self._change_batch(images, (seed, epoch, int(samples[0])))

        return Draft(read, lambda: self._batch(changed[0], used) if masks is None else (changed[0], masks))

    def _read(
        self, key: tuple[int, int, int], change: Transform | None, out: np.ndarray, mask: np.ndarray | None
    ) -> int:
        """Reads the sample of (seed, epoch, sample), or the first of its stand-ins that can be read; returns which it was."""
        seed, epoch, sample = key
        if self._try(sample, change, out, mask):
            return sample
        # A data set in the order of its files has the same stand-ins in every epoch, too.
        order = epoch if self._options.shuffle else 0
        for candidate in shuffling.stand_ins(self.files.labels, sample, seed=seed, epoch=order):
            if self._try(candidate, change, out, mask):
                return candidate
        self._broken.check()
        raise AssertionError("unreachable: a file that can be read was not among the stand-ins")

    def _try(self, sample: int, change: Transform | None, out: np.ndarray, mask: np.ndarray | None) -> bool:
        if sample in self._broken:
            return False
        try:
            pixels = self._pixels(sample)
            if mask is not None:
                self._read_mask(sample, change, mask)
        except UnreadableImageError as error:
            self._broken.add(sample, SkippedFile(self.files.path(sample), str(error)))
            return False
        finish(pixels, out, options=self._options, change=change)
        return True

    def _read_mask(self, sample: int, change: Transform | None, out: np.ndarray) -> None:
        reader, masks = self._masks, self.files.annotations.masks
        assert reader is not None
        assert masks is not None
        mask = reader.read(masks.path(sample))
        # Moved as its image is.
        out[...] = mask if change is None else self._options.augmentation.mask(mask, change)

    def _pixels(self, sample: int) -> np.ndarray:
        """A sample's pixels before they are changed, as ``ImageReader.pixels`` gives them."""
        if self._cache is not None:
            return self._cache.pixels(sample, lambda: self.reader.pixels(self.files.path(sample)))
        return self.reader.pixels(self.files.path(sample))

    def _image_spec(self) -> TensorSpec:
        shape = self._options.image_shape
        if self._change_batch is None:
            return TensorSpec(shape, "float32")
        changed = self._change_batch(np.zeros((1, *shape), np.float32), (0,))
        return TensorSpec(changed.shape[1:], str(changed.dtype))

    def _batch(self, images: np.ndarray, samples: np.ndarray) -> Any:
        if self.files.annotations.targets is not None:
            return images, self.files.annotations.targets[samples]
        labels = self.files.labels[samples]
        match self._options.label_mode:
            case None:
                return images
            case "categorical":
                return images, np.eye(len(self.class_names), dtype=np.float32)[labels]
            case "binary":
                return images, labels.astype(np.float32)[:, None]
            case _:
                return images, labels


def _batch_function(options: ImageOptions) -> BatchFunction | None:
    """What changes whole batches, where the augmentation is not one of single images."""
    if options.augmentation is None or isinstance(options.augmentation, Augmentation):
        return None
    return BatchFunction(options.augmentation, training=options.training)


def _label_spec(options: ImageOptions, files: FileTable) -> tuple[TensorSpec, ...]:
    if files.annotations.masks is not None:
        return (TensorSpec((*options.image_size, 1), "uint8"),)
    if files.annotations.targets is not None:
        return (TensorSpec(files.annotations.targets.shape[1:], "float32"),)
    match options.label_mode:
        case None:
            return ()
        case "categorical":
            return (TensorSpec((len(files.class_names),), "float32"),)
        case "binary":
            return (TensorSpec((1,), "float32"),)
        case _:
            return (TensorSpec((), "int32"),)


class ImageFolder(Pipeline):
    """Batches of decoded images; made by ``memfit.data.image_folder``.

    Args:
        source: The images.
        options: In which batches.
    """

    source: ImageSource

    def __init__(self, source: ImageSource, options: ImageOptions) -> None:
        super().__init__(source, options)

    def __repr__(self) -> str:
        height, width, channels = self.source.spec[0].shape
        return (
            f"<ImageFolder {self.source.files.directory!r}: {self.num_samples} images of {len(self.class_names)} classes, "
            f"{self._num_batches} batches of {self.batch_size} x {height} x {width} x {channels}>"
        )

    @property
    def cache_reason(self) -> str:
        """Which cache is used for decoded images, and why."""
        return self.source.cache_reason

    @property
    def file_paths(self) -> list[str]:
        """Paths of the images in the order of ``labels``. Made anew at each call: the data set keeps less."""
        return [self.source.files.path(index) for index in range(self.num_samples)]

    @property
    def labels(self) -> np.ndarray:
        """Before any shuffling: int32, shape (num_samples,), the class of each file, or float32, what it is to predict."""
        targets = self.source.files.annotations.targets
        return (self.source.files.labels if targets is None else targets).copy()
