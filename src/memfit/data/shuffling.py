"""Which sample is where: the order of an epoch, the split, the stand-ins. Pure functions of their seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

MOST_DRAWN = 2**22
"""Samples whose order is drawn as an array, of 16 MiB at the most; that of more is computed where it is needed."""

_AT_ONCE = 2**16


class ComputedOrder:
    """An order that takes no memory: its slices are computed. Without a key it is that of the samples.

    A Feistel network permutes the numbers of so many bits as the samples need; one that is too large goes through it again
    until it is none ("cycle walking"), which leaves a permutation of the samples.

    Args:
        num_samples: How many.
        key: What the permutation comes from: integers from 0; None for the samples as they lie.

    Example:
        >>> order = ComputedOrder(10, key=(1, 0))
        >>> sorted([*order[:4].tolist(), *order[4:].tolist()])
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    _ROUNDS = 6
    # The multipliers of SplitMix64 (Steele, Lea, Flood 2014), which spread every bit over all.
    _FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

    def __init__(self, num_samples: int, *, key: tuple[int, ...] | None = None) -> None:
        self._num_samples = num_samples
        bits = max(2, (num_samples - 1).bit_length())
        self._lower_bits = bits // 2
        self._upper_bits = bits - bits // 2
        self._keys = None if key is None else np.random.SeedSequence(key).generate_state(self._ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, positions: slice) -> np.ndarray:
        """The samples at these positions, int64."""
        samples = np.arange(*positions.indices(self._num_samples), dtype=np.int64)
        if self._keys is None:
            return samples
        for start in range(0, len(samples), _AT_ONCE):  # In pieces, because each takes some arrays of its length.
            part = samples[start : start + _AT_ONCE].view(np.uint64)
            part[...] = self._permuted(part)
            while len(outside := np.flatnonzero(part >= self._num_samples)):
                part[outside] = self._permuted(part[outside])
        return samples

    def _permuted(self, numbers: np.ndarray) -> np.ndarray:
        assert self._keys is not None
        lower_bits = np.uint64(self._lower_bits)
        upper, lower = numbers >> lower_bits, numbers & np.uint64(2**self._lower_bits - 1)
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                upper ^= self._mixed(lower, key, self._upper_bits)
            else:
                lower ^= self._mixed(upper, key, self._lower_bits)
        return (upper << lower_bits) | lower

    def _mixed(self, half: np.ndarray, key: np.uint64, bits: int) -> np.ndarray:
        """So many bits that depend on all bits of a half and of the key."""
        mixed = half + key
        mixed *= self._FIRST
        mixed ^= mixed >> np.uint64(29)
        mixed *= self._SECOND
        mixed >>= np.uint64(64 - bits)
        return mixed


Order = np.ndarray | ComputedOrder
"""The sample at each position; of either a slice is an array."""


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Order:
    """The order of the samples in an epoch: a permutation of all of them.

    Args:
        num_samples: How many.
        seed: Any integer from 0.
        epoch: From 0.

    Returns:
        int32, shape (num_samples,): the sample at each position; for more than ``MOST_DRAWN`` samples an order whose slices
        are such arrays.

    Example:
        >>> sorted(epoch_order(4, seed=1, epoch=0)[:].tolist())
        [0, 1, 2, 3]
    """
    if num_samples > MOST_DRAWN:
        return ComputedOrder(num_samples, key=(seed, epoch))
    order = np.arange(num_samples, dtype=np.int32)
    np.random.default_rng((seed, epoch)).shuffle(order)
    return order


def index_dtype(num_samples: int) -> type[np.signedinteger[Any]]:
    """The smaller of int32 and int64 that counts so many samples."""
    return np.int32 if num_samples < 2**31 else np.int64


def order_bytes(num_samples: int) -> int:
    """Bytes of what ``epoch_order`` returns."""
    return 4 * num_samples if num_samples <= MOST_DRAWN else 0


def split(labels: np.ndarray, *, validation_split: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides samples into training and validation, the same share of every class.

    Args:
        labels: Integers, shape (num_samples,).
        validation_split: Share of the samples of each class that goes to validation, rounded.
        seed: Two calls with the same labels and seed give the same division.

    Returns:
        Indices of the training samples and of the validation samples, each in ascending order.

    Example:
        >>> [part.size for part in split(np.array([0, 0, 0, 0, 1, 1, 1, 1]), validation_split=0.25, seed=0)]
        [6, 2]
    """
    chosen = np.zeros(len(labels), bool)
    rng = np.random.default_rng((seed, len(labels)))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(validation_split * len(members))]] = True
    dtype = index_dtype(len(labels))
    return np.flatnonzero(~chosen).astype(dtype), np.flatnonzero(chosen).astype(dtype)


def stand_ins(labels: np.ndarray, index: int, *, seed: int, epoch: int) -> Iterator[int]:
    """Samples that may take the place of one that cannot be read: those of its class first, then all others.

    The order is a function of the arguments alone, and not of what is known to be broken, so that a batch is the same
    whenever it is asked for.

    Example:
        >>> sorted(stand_ins(np.array([0, 1, 0]), 0, seed=0, epoch=0))
        [1, 2]
    """
    rng = np.random.default_rng((seed, epoch, index))
    for of_class in (True, False):
        count = int(np.count_nonzero((labels == labels[index]) == of_class))
        start = int(rng.integers(max(count, 1)))
        first = itertools.islice(_members(labels, labels[index], of_class=of_class), start)
        for candidate in itertools.chain(_members(labels, labels[index], of_class=of_class, skipped=start), first):
            if candidate != index:
                yield candidate


def _members(labels: np.ndarray, label: int, *, of_class: bool, skipped: int = 0) -> Iterator[int]:
    """Samples of a class, or those of all others, but the first few; in pieces, because all of them take 8 bytes each."""
    for start in range(0, len(labels), _AT_ONCE):
        members = np.flatnonzero((labels[start : start + _AT_ONCE] == label) == of_class) + start
        yield from members[skipped:].tolist()
        skipped = max(0, skipped - len(members))
