"""Batches of any source as a ``keras.utils.PyDataset``. Imports Keras: only imported when a data set is made."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit import errors
from memfit.data import shuffling
from memfit.data.broken_files import SkippedFile
from memfit.data.look_ahead import BatchForecast, LookAhead, PendingBatch
from memfit.data.pipeline_options import Division, PipelineOptions
from memfit.data.position import Position
from memfit.data.source import Source

BatchKey = tuple[int, int]

_THREAD_BYTES = 2**20
"""Of a thread: its stack, and what the C library keeps for it."""

_BATCH_NUMBER_BYTES = 41
"""Of a batch: whether it was given out, and its place in a shuffled list of numbers."""


class Pipeline(keras.utils.PyDataset):
    """Batches of a source, made ahead by a few threads; what every loader of ``memfit.data`` returns.

    ``dataset[index]`` is a pure function of (``seed``, ``epoch``, ``index``). The epoch advances when a pass begins
    (``fit``, ``evaluate``, ``predict`` or a ``for`` loop) after one that gave out every batch; assign ``epoch``, or
    ``restore`` a position, to go elsewhere.

    To Keras it has no workers: the threads are its own (``look_ahead.py`` says why), and end with each pass.

    Args:
        source: What to read.
        options: In which batches.
        samples: Which samples of the source, int, shape (num_samples,); all if left out.
    """

    def __init__(self, source: Source, options: PipelineOptions, *, samples: np.ndarray | None = None) -> None:
        num_samples = source.num_samples if samples is None else len(samples)
        self._batch_bytes = min(options.batch_size, num_samples) * source.sample_bytes
        self._depth = options.depth(self._batch_bytes) if options.workers else 0
        self._num_batches = -(-num_samples // options.batch_size)
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=max(1, self._depth))
        self.options = options
        self.source = source
        self._subset = samples
        self._num_samples = num_samples
        self._epoch = 0
        self._first = 0
        self._order: shuffling.Order | None = None
        self._in_pass = False
        self._given_out = np.zeros(self._num_batches, bool)
        self._begin_threads()

    def _begin_threads(self) -> None:
        self._lock = threading.RLock()
        self._forecast = BatchForecast()
        self._ahead: LookAhead[BatchKey, Any] = LookAhead(
            self._start, workers=max(1, self.options.workers), depth=self._depth
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_forecast", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_threads()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.num_samples} samples in {self._num_batches} batches of {self.batch_size}>"
        )

    # What it holds.

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; a label is an index into them. Empty where there are none."""
        return list(self.source.class_names)

    @property
    def class_indices(self) -> dict[str, int]:
        """The label of each class name."""
        return {name: label for label, name in enumerate(self.class_names)}

    @property
    def num_samples(self) -> int:
        """Samples of every epoch."""
        return self._num_samples

    @property
    def batch_size(self) -> int:
        """Samples of a batch; the last one of an epoch may have fewer."""
        return self.options.batch_size

    @property
    def seed(self) -> int:
        """What the order of every epoch comes from: the one given, or the one that was drawn."""
        return self.options.seed

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Files that were left out so far, each with its ``path`` and ``reason``."""
        return self.source.skipped

    @property
    def batch_spec(self) -> tuple[Any, ...]:
        """``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)`` of ``TensorSpec`` of a full batch, the largest that comes."""
        return self.source.batch_spec(min(self.batch_size, self.num_samples))

    @property
    def reading_bytes(self) -> int:
        """The most bytes of host memory that a run adds to what is held before it, beside the batches."""
        threads = max(1, self.options.workers) * (self.source.reading_bytes + _THREAD_BYTES)
        return threads + self.source.growing_bytes + self._order_bytes + _BATCH_NUMBER_BYTES * self._num_batches

    @property
    def _order_bytes(self) -> int:
        # Two, because a thread may look at the last epoch's while the next one's is drawn.
        drawn = 2 * shuffling.order_bytes(self.num_samples) if self.options.shuffle else 0
        return drawn + self.source.arranging_bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes of host memory that the pipeline takes, known before the run.

        Batches are those made ahead, the one just handed out and the one before it, which training may still hold;
        TensorFlow copies a batch and fetches one or two more.
        """
        held = self.source.held_bytes + (0 if self._subset is None else self._subset.nbytes)
        return (self._depth + 2) * self._batch_bytes + self.reading_bytes + held

    def hold_less(self) -> int:
        """Makes one batch ahead and no more, until ``hold_as_asked``.

        Returns:
            The bytes that it holds less at the most; 0 where it was so already.
        """
        depth, self._depth = self._depth, min(1, self._depth)
        self._ahead.limit(self._depth)
        return (depth - self._depth) * self._batch_bytes

    def hold_as_asked(self) -> None:
        """Makes as many batches ahead as its options say, and fills its cache."""
        self.source.fill_again()
        self._depth = self.options.depth(self._batch_bytes) if self.options.workers else 0
        self._ahead.limit(self._depth)

    # What Keras calls.

    def __len__(self) -> int:
        return self._num_batches - self._first

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, or of the rest of one after ``restore``."""
        self._forecast.note_pass()
        return len(self)

    def __getitem__(self, index: int) -> Any:
        """Batch ``index`` of the current epoch, counted from the restored position where there is one.

        Returns:
            ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` of numpy arrays; shapes and dtypes are those of ``batch_spec``.
        """
        index = range(len(self))[index]  # IndexError, and negative numbers, as for a list.
        with self._lock:
            epoch, first, in_pass = self._epoch, self._first, self._in_pass
            if in_pass:
                self._given_out[first + index] = True
        try:
            if self.options.workers == 0:
                batch = self._made_here(epoch, first + index)
            else:
                batch = self._made_ahead(epoch, first, index, in_pass=in_pass)
            self.source.report()
        except BaseException:  # Keras lets the error through without an end of the pass.
            self._ahead.close()
            raise
        return batch

    def _made_here(self, epoch: int, index: int) -> Any:
        samples = self._samples(epoch, index)
        draft = self.source.begin(samples, seed=self.seed, epoch=epoch)
        draft.read(0, len(samples))
        return draft.finish()

    def _made_ahead(self, epoch: int, first: int, index: int, *, in_pass: bool) -> Any:
        with self._lock:
            ahead = self._forecast.following(index, num_batches=self._num_batches - first, depth=self._depth)
        following = ((epoch, first + other) for other in ahead) if in_pass else ()
        batch = self._ahead.take((epoch, first + index), following)
        if not self._in_pass:  # Or the pass has ended meanwhile.
            self._ahead.close()
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
        """Which epoch's order is in use, from 0. Assign it before ``fit`` to resume at its beginning."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        with self._lock:
            self._epoch = int(epoch)
            self._order = None
            self._first = 0
            self._given_out[:] = False

    def on_epoch_begin(self) -> None:
        """Keras begins a pass. It may be a false start, to build the model: only a full pass ends an epoch."""
        with self._lock:
            if self._given_out.all():
                self.epoch += 1
            self._in_pass = True

    def on_epoch_end(self) -> None:
        """Keras ends a pass, or resets before the first: batches made for it are dropped, and its threads end."""
        with self._lock:
            self._in_pass = False
            if self._given_out.all():
                self._first = 0
        self._ahead.close()

    # Where it is.

    @property
    def state(self) -> Position:
        """Where the run is: after the batches that were handed out so far in this epoch.

        In a callback use ``state_after``: TensorFlow takes batches ahead of the step that it trains.

        Raises:
            MemfitError: Batches were not handed out in order, so that a number of them is no position.
        """
        with self._lock:
            if self._given_out.all():
                return self._position(self._epoch + 1, 0)
            step = int(self._given_out.sum())
            if not self._given_out[:step].all():
                raise errors.MemfitError(
                    "The position in an epoch is only known where batches are taken in order. Received: a pass in which "
                    "Keras shuffled the batches. Pass shuffle=False to fit: the data set shuffles its samples itself."
                )
            return self._position(self._epoch, max(step, self._first))

    def state_after(self, step: int) -> Position:
        """The position after ``step`` batches of the current epoch, for ``fit(shuffle=False)``."""
        if step >= self._num_batches:
            return self._position(self._epoch + 1, 0)
        return self._position(self._epoch, step)

    def restore(self, state: Position) -> None:
        """Goes to a position: the next pass gives exactly the rest of that epoch, later ones are whole.

        Keras fixes the number of steps at the beginning of ``fit``: fit one epoch for the rest, then the others.

        Raises:
            ArgumentError: The position is one in another data set, or in other batches.
        """
        if (state.num_samples, state.batch_size) != (self.num_samples, self.batch_size):
            raise errors.ArgumentError(
                f"The position is in {state.num_samples} samples in batches of {state.batch_size}. Received: a data set of "
                f"{self.num_samples} samples in batches of {self.batch_size}. Make it as it was made then."
            )
        with self._lock:
            self.options = dataclasses.replace(self.options, seed=state.seed)
            self.epoch = state.epoch
            self._first = state.step
            self._given_out[: state.step] = True

    def _position(self, epoch: int, step: int) -> Position:
        return Position(self.seed, epoch, step, self.num_samples, self.batch_size)

    # How a batch is made.

    def _start(self, executor: concurrent.futures.Executor, key: BatchKey) -> PendingBatch[Any]:
        """Submits a batch in as many parts as there are threads, so that the first one comes soon."""
        epoch, index = key
        samples = self._samples(epoch, index)
        draft = self.source.begin(samples, seed=self.seed, epoch=epoch)
        num_parts = max(1, min(self.options.workers, len(samples) // draft.least_rows))
        edges = np.linspace(0, len(samples), num_parts + 1).astype(int).tolist()
        parts = [executor.submit(draft.read, start, stop) for start, stop in itertools.pairwise(edges)]
        return PendingBatch(parts, draft.finish)

    def _samples(self, epoch: int, index: int) -> np.ndarray:
        # A copy, so that no batch keeps the order of its epoch.
        samples = self._order_of(epoch)[index * self.batch_size : (index + 1) * self.batch_size].copy()
        return samples if self._subset is None else self._subset[samples]

    def _order_of(self, epoch: int) -> shuffling.Order:
        with self._lock:
            if epoch == self._epoch and self._order is not None:
                return self._order
            order: shuffling.Order = shuffling.ComputedOrder(self.num_samples)
            if self.options.shuffle:
                order = shuffling.epoch_order(self.num_samples, seed=self.seed, epoch=epoch)
            order = self.source.arranged(order, batch_size=self.batch_size, shuffled=self.options.shuffle)
            if epoch == self._epoch:
                self._order = order
            return order


def divided(source: Source, options: PipelineOptions, division: Division) -> Any:
    """The pipeline of a source, or of the subset that was asked for; two for ``subset="both"``.

    Validation samples are not shuffled: nothing learns from their order, and in a fixed one predictions match labels.

    Args:
        source: Its ``classes`` are divided evenly.
        options: Of the training samples.
        division: What was asked for.

    Raises:
        ArgumentError: One of the two would be empty.
    """
    if division.validation_split is None:
        return Pipeline(source, options)
    classes = np.zeros(source.num_samples, np.int8) if source.classes is None else source.classes
    training, validation = shuffling.split(
        classes, validation_split=division.validation_split, seed=division.seed_of_split
    )
    division.check(training.size, validation.size)
    made = {
        "training": Pipeline(source, options, samples=training),
        "validation": Pipeline(source, dataclasses.replace(options, shuffle=False), samples=validation),
    }
    return tuple(made.values()) if division.subset == "both" else made[str(division.subset)]
