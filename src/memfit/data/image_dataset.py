"""Images of a folder as a ``keras.utils.PyDataset``. Imports Keras: only imported when a data set is made."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.data import shuffling
from memfit.data.augmentation import Augmentation
from memfit.data.broken_files import BrokenFiles, SkippedFile
from memfit.data.file_table import FileTable
from memfit.data.image_decoding import ImageReader, UnreadableImageError, finish
from memfit.data.image_options import ImageOptions
from memfit.data.layer_augmentation import BatchFunction
from memfit.data.look_ahead import BatchForecast, LookAhead, PendingBatch

BatchKey = tuple[int, int]


class ImageFolder(keras.utils.PyDataset):
    """Batches of decoded images; made by ``memfit.data.image_folder``.

    ``dataset[index]`` is a pure function of (``epoch``, ``index``). The epoch advances when a pass begins (``fit``,
    ``evaluate``, ``predict`` or a ``for`` loop) after one that gave out every batch; assign ``epoch`` to go elsewhere.

    To Keras it has no workers: the threads are its own (``look_ahead.py`` says why).

    Args:
        files: What to read.
        options: How to read it.
        reader: Decodes files.
        broken: Files found broken before.
    """

    def __init__(self, files: FileTable, options: ImageOptions, reader: ImageReader, broken: BrokenFiles) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=max(1, options.max_queue_size))
        self.options = options
        self._files = files
        self._reader = reader
        self._broken = broken
        self._epoch = 0
        self._order: np.ndarray | None = None
        self._in_pass = False
        self._given_out = np.zeros(len(self), bool)
        self._change_batch = _batch_function(options)
        self._begin_threads()

    def _begin_threads(self) -> None:
        self._lock = threading.RLock()
        self._forecast = BatchForecast()
        self._ahead: LookAhead[BatchKey, Any] = LookAhead(
            self._start, workers=self.options.workers, depth=self.options.max_queue_size
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_forecast", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_threads()

    def __repr__(self) -> str:
        height, width, channels = self.options.image_shape
        return (
            f"<ImageFolder {self._files.directory!r}: {self.num_samples} images of {len(self.class_names)} classes, "
            f"{len(self)} batches of {self.batch_size} x {height} x {width} x {channels}>"
        )

    # What it holds.

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders; a label is an index into them. Empty where there are no class folders."""
        return [name for name in self._files.folders if name]

    @property
    def class_indices(self) -> dict[str, int]:
        """The label of each class name."""
        return {name: label for label, name in enumerate(self.class_names)}

    @property
    def file_paths(self) -> list[str]:
        """Paths of the images in the order of ``labels``. Made anew at each call: the data set keeps less."""
        return [self._files.path(index) for index in range(self.num_samples)]

    @property
    def labels(self) -> np.ndarray:
        """int32, shape (num_samples,): the class of each file, before any shuffling."""
        return self._files.labels.copy()

    @property
    def num_samples(self) -> int:
        """Files that were found; also the number of samples in every epoch."""
        return len(self._files)

    @property
    def batch_size(self) -> int:
        """Images of a batch; the last one of an epoch may have fewer."""
        return self.options.batch_size

    @property
    def seed(self) -> int:
        """What the order of every epoch comes from: the one given, or the one that was drawn."""
        return self.options.seed

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Files that were left out so far, each with its ``path`` and ``reason``."""
        return self._broken.skipped

    @property
    def peak_bytes(self) -> int:
        """The most bytes of host memory that the pipeline takes: batches, decoding, and the list of files.

        Batches are those made ahead, the one just handed out and the one before it, which training may still hold;
        TensorFlow copies a batch and fetches one or two more. Decoding counts the largest file read so far.
        """
        labels = max(1, len(self.class_names)) if self.options.label_mode == "categorical" else 1
        batch = min(self.batch_size, self.num_samples) * (math.prod(self.options.image_shape) + labels + 2) * 4
        orders = 2 * 8 * self.num_samples
        decoding = self.options.workers * self._reader.most_bytes
        return (self.options.max_queue_size + 2) * batch + decoding + self._files.num_bytes + orders

    # What Keras calls.

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        self._forecast.note_pass()
        return len(self)

    def __getitem__(self, index: int) -> Any:
        """Batch ``index`` of the current epoch.

        Returns:
            ``(images, labels)``, or ``images`` where ``label_mode`` is None: float32, shape (batch_size, height, width,
            channels), beside int32 (batch_size,), float32 (batch_size, num_classes) or float32 (batch_size, 1).
        """
        index = range(len(self))[index]  # IndexError, and negative numbers, as for a list.
        with self._lock:
            epoch = self._epoch
            if self._in_pass:
                self._given_out[index] = True
            ahead = self._forecast.following(index, num_batches=len(self), depth=self.options.max_queue_size)
        batch = self._ahead.take((epoch, index), ((epoch, other) for other in ahead))
        self._broken.warn()
        return batch

    def __iter__(self) -> Iterator[Any]:
        self.on_epoch_begin()
        try:
            for index in range(len(self)):
                yield self[index]
        finally:
            self.on_epoch_end()

    @property
    def epoch(self) -> int:
        """Which epoch's order is in use, from 0. Assign it before ``fit`` to resume."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        with self._lock:
            self._epoch = int(epoch)
            self._order = None
            self._given_out[:] = False

    def on_epoch_begin(self) -> None:
        """Keras begins a pass. It may be a false start, to build the model: only a full pass ends an epoch."""
        with self._lock:
            if self._given_out.all():
                self.epoch += 1
            self._in_pass = True

    def on_epoch_end(self) -> None:
        """Keras ends a pass, or resets before the first: batches made for it are dropped."""
        with self._lock:
            self._in_pass = False
        self._ahead.clear()

    # How a batch is made.

    def _start(self, executor: concurrent.futures.Executor, key: BatchKey) -> PendingBatch[Any]:
        """Submits a batch in as many parts as there are threads, so that the first one comes soon."""
        epoch, index = key
        samples = self._samples(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        images = np.empty((len(samples), *self.options.image_shape), np.float32)
        used = samples.copy()
        edges = np.linspace(0, len(samples), min(self.options.workers, len(samples)) + 1).astype(int).tolist()
        unread = itertools.count(len(edges) - 2, -1)
        changed = [images]

        def read(start: int, stop: int) -> None:
            for row in range(start, stop):
                used[row] = self._read(int(samples[row]), epoch, images[row])
            # Here and not where the batch is handed over, so that it is done ahead, too.
            if next(unread) == 0 and self._change_batch is not None:
                changed[0] = self._change_batch(images, (self.seed, epoch, index))

        parts = [executor.submit(read, start, stop) for start, stop in itertools.pairwise(edges)]
        return PendingBatch(parts, lambda: self._batch(changed[0], used))

    def _samples(self, epoch: int) -> np.ndarray:
        if not self.options.shuffle:
            return np.arange(self.num_samples)
        with self._lock:
            if epoch != self._epoch:
                return shuffling.epoch_order(self.num_samples, seed=self.seed, epoch=epoch)
            if self._order is None:
                self._order = shuffling.epoch_order(self.num_samples, seed=self.seed, epoch=epoch)
            return self._order

    def _read(self, sample: int, epoch: int, out: np.ndarray) -> int:
        """Reads a sample, or the first of its stand-ins that can be read, into ``out``; returns which one it was."""
        if self._try(sample, epoch, out):
            return sample
        # A data set in the order of its files has the same stand-ins in every epoch, too.
        order = epoch if self.options.shuffle else 0
        for candidate in shuffling.stand_ins(self._files.labels, sample, seed=self.seed, epoch=order):
            if self._try(candidate, epoch, out):
                return candidate
        self._broken.check()
        raise AssertionError("unreachable: a file that can be read was not among the stand-ins")

    def _try(self, sample: int, epoch: int, out: np.ndarray) -> bool:
        if sample in self._broken:
            return False
        try:
            pixels = self._pixels(sample)
        except UnreadableImageError as error:
            self._broken.add(sample, SkippedFile(self._files.path(sample), str(error)))
            return False
        finish(pixels, out, options=self.options, key=(self.seed, epoch, sample))
        return True

    def _pixels(self, sample: int) -> np.ndarray:
        """A sample's pixels before they are changed, as ``ImageReader.pixels`` gives them."""
        return self._reader.pixels(self._files.path(sample))

    def _batch(self, images: np.ndarray, samples: np.ndarray) -> Any:
        labels = self._files.labels[samples]
        match self.options.label_mode:
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
