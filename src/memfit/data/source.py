"""The seam between what holds the samples and the pipeline that makes batches of them: ``Source`` and ``Draft``."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memfit.data import structure
from memfit.data.broken_files import SkippedFile
from memfit.data.shuffling import Order
from memfit.records import TensorSpec


@dataclasses.dataclass(frozen=True)
class Draft:
    """A batch that is being made, in parts by several threads.

    Attributes:
        read: Called with (start, stop), makes those rows; different rows may be made in different threads.
        finish: Called once after all rows, gives the batch.
        least_rows: Fewer rows than this are not worth a thread of their own.
    """

    read: Callable[[int, int], None]
    finish: Callable[[], Any]
    least_rows: int = 1


class Source(abc.ABC):
    """Samples by number. A new kind of data is a subclass of this; everything else is the pipeline's.

    Whatever is drawn at random must be a function of ``seed``, ``epoch`` and the sample alone: then a batch is the same
    whenever, and in whichever thread, it is made.

    Attributes:
        num_samples: Samples that there are.
        spec: ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)`` of TensorSpec of *one sample*, the largest that occurs;
            dicts, lists and tuples of them where the data has such.
        class_names: Names of the classes, in the order of the labels; empty where there are none.
        classes: int, shape (num_samples,): which group each sample belongs to, for a split with the same share of each;
            None where there are none.
    """

    num_samples: int
    spec: tuple[Any, ...]
    class_names: Sequence[str] = ()
    classes: np.ndarray | None = None

    @abc.abstractmethod
    def begin(self, samples: np.ndarray, *, seed: int, epoch: int) -> Draft:
        """The draft of the batch of these samples: int64, shape (batch_size,), in this order."""

    @property
    def held_bytes(self) -> int:
        """Bytes that it holds from the beginning for as long as it lives, beside the user's own data."""
        return 0

    @property
    def growing_bytes(self) -> int:
        """Bytes that it will hold in addition, once the first epoch is over: a cache."""
        return 0

    def bound(self, room: int) -> str:
        """Told before a run how many bytes it may grow by; gives a sentence about that for the user, or an empty text."""
        return ""

    def give_back(self, num_bytes: int) -> int:
        """Told that memory runs short: gives back so much of a cache, and fills it no further; returns the bytes."""
        return 0

    def fill_again(self) -> None:  # noqa: B027
        """Told at the end of a run that a cache may be filled again."""

    @property
    def reading_bytes(self) -> int:
        """The most bytes that one thread takes while it makes rows, beside the batch itself."""
        return 0

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Files that were left out so far."""
        return ()

    def arranged(self, order: Order, *, batch_size: int, shuffled: bool) -> Order:
        """The order of an epoch, rearranged where the source has a reason to, such as batches of like length."""
        return order

    @property
    def arranging_bytes(self) -> int:
        """The most bytes that ``arranged`` takes, what it returns among them; 0 where orders stay as they are."""
        return 0

    def report(self) -> None:  # noqa: B027
        """Called in the thread that takes a batch: what has to be said about it is said here."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of the largest sample in a batch."""
        return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in structure.leaves(self.spec))

    def batch_spec(self, batch_size: int) -> tuple[Any, ...]:
        """``spec`` with the batch axis in front."""
        return structure.mapped(lambda leaf: TensorSpec((batch_size, *leaf.shape), leaf.dtype), self.spec)
