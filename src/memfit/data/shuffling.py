"""Which sample is where: the order of an epoch, the split, the stand-ins. Pure functions of their seeds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in an epoch: a permutation of all of them.

    Args:
        num_samples: How many.
        seed: Any integer from 0.
        epoch: From 0.

    Returns:
        int32 (int64 for more samples than that counts), shape (num_samples,): the sample at each position.

    Example:
        >>> sorted(epoch_order(4, seed=1, epoch=0).tolist())
        [0, 1, 2, 3]
    """
    order = np.arange(num_samples, dtype=np.int32 if num_samples < 2**31 else np.int64)
    np.random.default_rng((seed, epoch)).shuffle(order)
    return order


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
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def stand_ins(labels: np.ndarray, index: int, *, seed: int, epoch: int) -> Iterator[int]:
    """Samples that may take the place of one that cannot be read: those of its class first, then all others.

    The order is a function of the arguments alone, and not of what is known to be broken, so that a batch is the same
    whenever it is asked for.

    Example:
        >>> sorted(stand_ins(np.array([0, 1, 0]), 0, seed=0, epoch=0))
        [1, 2]
    """
    rng = np.random.default_rng((seed, epoch, index))
    for group in (np.flatnonzero(labels == labels[index]), np.flatnonzero(labels != labels[index])):
        start = int(rng.integers(max(len(group), 1)))
        for candidate in np.roll(group, -start):
            if candidate != index:
                yield int(candidate)
