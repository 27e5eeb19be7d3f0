"""How often a run is kept: at intervals of which a snapshot takes no more than its share."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_BYTES_PER_SECOND = 100e6
"""What a first snapshot is taken to be written at, until one has been measured."""

_FIRST_WAITS = 4
"""Least intervals before the first snapshot: its bytes do not tell how long the disk lets it wait, 10 to 20 ms as a rule."""

_AFTER_FAILURE_SECONDS = 30.0


class Pace:
    """When the next snapshot is due, from what the last ones took.

    Args:
        share: Of the time, what snapshots may take.
        least_seconds: Between two of them.
    """

    def __init__(self, share: float, least_seconds: float) -> None:
        self._share = share
        self._least_seconds = least_seconds
        self._cost: float | None = None
        self._last = 0.0
        self._interval = 0.0

    def begin(self, variables: list[Any]) -> None:
        """Training begins now."""
        self._last = time.monotonic()
        if self._cost is None:
            num_bytes = sum(int(np.prod(variable.shape)) * 4 for variable in variables)
            self._set(num_bytes / _BYTES_PER_SECOND)
            self._interval = max(self._interval, _FIRST_WAITS * self._least_seconds)

    def is_due(self) -> bool:
        """Whether so much time has gone by that a snapshot costs no more than its share."""
        return time.monotonic() - self._last >= self._interval

    def wrote(self, seconds: float) -> None:
        """A snapshot has just been written, in so many seconds."""
        self._last = time.monotonic()
        # One slow write, behind another program's, is forgotten after a few quick ones.
        self._set(max(seconds, 0.0 if self._cost is None else 0.5 * self._cost))

    def failed(self) -> None:
        """None could be written: the disk is given some time."""
        self._last = time.monotonic()
        self._interval = max(self._interval, _AFTER_FAILURE_SECONDS)

    def _set(self, cost: float) -> None:
        self._cost = cost
        self._interval = max(self._least_seconds, cost / self._share)
