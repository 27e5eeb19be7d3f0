"""Builds a timeline of bounded length while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

from memfit import units
from memfit.budgeting import cgroup
from memfit.budgeting.usage import Gauge
from memfit.records import Budget
from memfit.timeline import Sample, Timeline

if TYPE_CHECKING:
    from memfit.backends.protocol import Backend

MOST_SAMPLES = 4096
"""Each time that they are reached neighbours are joined, and stretches are twice as long from then on."""

_SLOW_SECONDS = 1.0
_SLOW_SHARE = 0.001
"""Of the time, what may go to readings that are slow: children, the control group, the device."""

MARKS = (0.8, 0.9, 1.0)
"""Shares of the budget that are worth an event when they are first reached."""


class Recorder:
    """Takes the readings of a ``Watcher`` and adds what it does not read.

    Args:
        backend: Asked for the device's memory; None leaves it out.
        budget: For the marks; None sets none.
        tell: Called with the kind and the sentence of an event when a mark is reached.
        clock: Seconds since the start of what is recorded.

    Attributes:
        phase: Where training is now.
        epoch: The epoch now.
        batch: The batch now.

    Example:
        >>> recorder = Recorder()
        >>> recorder.phase, recorder.epoch = "train", 0
        >>> recorder.add(2**20)
        >>> recorder.timeline().samples[0].host_bytes
        1048576
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        budget: Budget | None = None,
        tell: Callable[[str, str], None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        start = time.monotonic()
        self._backend = backend
        self._budget = budget
        self._tell = tell
        self._clock = clock or (lambda: time.monotonic() - start)
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._stretch = 0.0
        self._first: float | None = None
        self._last = 0.0
        self._spent = 0.0
        self._next_slow = 0.0
        self._reached: set[tuple[str, float]] = set()
        self._process = psutil.Process()
        self._group = next(iter(cgroup.groups()), None)
        self._slow: tuple[int | None, int | None, int | None] = (None, None, None)
        self.phase = "start"
        self.epoch: int | None = None
        self.batch: int | None = None

    def add(self, host_bytes: int, *, sampling: bool = True) -> None:
        """One reading of this process; ``sampling`` where the thread that samples calls it, whose time is the cost."""
        now = self._clock()
        if time.monotonic() >= self._next_slow:
            self._read_slow()
        sample = Sample(now, self.phase, self.epoch, self.batch, host_bytes, *self._slow)
        with self._lock:
            self._first = now if self._first is None else self._first
            self._last = now
            if self._samples and now - self._samples[-1].seconds < self._stretch:
                self._samples[-1] = self._samples[-1].joined(sample)
            else:
                self._samples.append(sample)
            if len(self._samples) >= MOST_SAMPLES:
                self._thin()
        self._mark(sample)
        if sampling:
            self._spent = time.thread_time()  # of a thread that does nothing else

    def timeline(self) -> Timeline:
        """What was recorded so far."""
        with self._lock:
            elapsed = self._last - (self._last if self._first is None else self._first)
            return Timeline(tuple(self._samples), self._spent / elapsed if elapsed else 0.0)

    def last(self) -> Sample | None:
        """The latest sample; None before the first."""
        with self._lock:
            return self._samples[-1] if self._samples else None

    def _thin(self) -> None:
        pairs = zip(self._samples[::2], self._samples[1::2], strict=False)
        kept = [one.joined(other) for one, other in pairs]
        self._stretch = max(2 * self._stretch, (self._last - kept[0].seconds) / len(kept))
        self._samples = kept

    def _read_slow(self) -> None:
        begun = time.perf_counter()
        memory = None if self._backend is None else self._backend.device_memory()
        self._slow = (self._children(), self._group_bytes(), None if memory is None else memory.used_bytes)
        took = time.perf_counter() - begun
        self._next_slow = time.monotonic() + max(_SLOW_SECONDS, took / _SLOW_SHARE)

    def _children(self) -> int | None:
        try:
            total = 0
            for child in self._process.children(recursive=True):
                with Gauge(child.pid) as gauge:
                    total += gauge.read()
        except (psutil.Error, OSError):  # a child that has just ended, or a system that does not tell
            return self._slow[0]
        return total

    def _group_bytes(self) -> int | None:
        if self._group is None:
            return None
        name = "memory.current" if self._group.version == 2 else "memory.usage_in_bytes"
        used = cgroup.number(self._group.folder / name)
        return None if used is None else max(0, used - cgroup.file_bytes(self._group.folder, self._group.version))

    def _mark(self, sample: Sample) -> None:
        if self._budget is None or self._tell is None:
            return
        for what, held, total in (
            ("host", sample.host_bytes, self._budget.host_bytes),
            ("device", sample.device_bytes, self._budget.device_bytes),
        ):
            for mark in MARKS:
                if held is not None and total and held >= mark * total and (what, mark) not in self._reached:
                    self._reached.add((what, mark))
                    self._tell(
                        "mark", f"{what} memory reached {mark:.0%} of the budget: {units.text(held)}{_at(sample)}"
                    )


def _at(sample: Sample) -> str:
    place = "" if sample.epoch is None else f", epoch {sample.epoch + 1}"
    return place if sample.batch is None else f"{place}, batch {sample.batch + 1}"
