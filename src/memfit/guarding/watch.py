"""A thread that keeps the highest reading of this process's memory while training runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from memfit.budgeting.usage import Gauge
from memfit.records import Reading

if TYPE_CHECKING:
    from memfit.backends.protocol import Backend

# The allocator keeps the device's peak, so that the device need not be asked often; asking takes its lock.
_SAMPLES_PER_DEVICE_SAMPLE = 20


class Watcher:
    """Watches what this process holds, from entry to exit of a ``with`` block.

    The host's anonymous bytes are sampled every ``interval`` seconds: a peak between two samples is missed. The
    device's peak is the allocator's own where it rose during the watch, and exact then; where an earlier peak was
    higher, the highest sample, one a second. A sample of the host costs about 130 microseconds, half of it waking up:
    0.25 % of a core at the default interval (measured on a virtual machine with two busy cores).

    Args:
        backend: Asked for the device's memory; None watches the host alone.
        interval: Seconds between two samples.
        notify: Called with each sample of the host, in the thread that takes it.

    Attributes:
        peak: The highest reading so far: host and device each at its own highest moment.

    Example:
        >>> with Watcher() as watcher:
        ...     block = bytearray(64 * 2**20)
        >>> watcher.peak.host_bytes > 64 * 2**20
        True
    """

    def __init__(
        self, backend: Backend | None = None, *, interval: float = 0.05, notify: Callable[[int], None] | None = None
    ) -> None:
        self._backend = backend
        self._notify = notify
        self._interval = interval
        self._gauge: Gauge | None = None
        self._thread: threading.Thread | None = None
        # Held while the thread is to run. Waiting for a lock wakes the thread at half the cost of waiting for an Event.
        self._running = threading.Lock()
        self._window_peak = 0
        self.peak = Reading(0, None, "nothing watched yet")

    def __enter__(self) -> Watcher:
        if self._gauge is not None:
            raise RuntimeError("A Watcher watches one block at a time. Received: a second entry before the first exit.")
        memory = None if self._backend is None else self._backend.device_memory()
        self._peak_before = None if memory is None else memory.peak_bytes
        self._gauge = Gauge()
        self.peak = Reading(self._gauge.read(), None if memory is None else memory.used_bytes, self._source())
        self._running.acquire()
        self._thread = threading.Thread(target=self._watch, args=(self._gauge,), name="memfit-watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._gauge is None or self._thread is None:
            return
        self._running.release()
        self._thread.join()
        try:
            self._sample_host(self._gauge)
            self._sample_device()
        finally:
            self._gauge.close()
            self._gauge = self._thread = None

    def held(self) -> int:
        """What this process holds on the host now; 0 outside of the block."""
        return 0 if self._gauge is None else self._gauge.read()

    def take_window_peak(self) -> int:
        """The highest sample of the host since the last call."""
        peak, self._window_peak = self._window_peak, 0
        return peak

    def _watch(self, gauge: Gauge) -> None:
        num_samples = 0
        while not self._running.acquire(timeout=self._interval):
            host_bytes = self._sample_host(gauge)
            if self._notify is not None:
                self._notify(host_bytes)
            num_samples += 1
            if num_samples % _SAMPLES_PER_DEVICE_SAMPLE == 0:
                self._sample_device()
        self._running.release()

    def _sample_host(self, gauge: Gauge) -> int:
        host_bytes = gauge.read()
        self._window_peak = max(self._window_peak, host_bytes)
        if host_bytes > self.peak.host_bytes:
            self.peak = Reading(host_bytes, self.peak.device_bytes, self.peak.source)
        return host_bytes

    def _sample_device(self) -> None:
        memory = None if self._backend is None else self._backend.device_memory()
        if memory is None:
            return
        rose = self._peak_before is None or memory.peak_bytes > self._peak_before
        device_bytes = memory.peak_bytes if rose else memory.used_bytes
        if self.peak.device_bytes is None or device_bytes > self.peak.device_bytes:
            self.peak = Reading(self.peak.host_bytes, device_bytes, self.peak.source)

    def _source(self) -> str:
        assert self._gauge is not None
        host = f"{self._gauge.source}, sampled every {1000 * self._interval:.0f} ms"
        return host if self._peak_before is None else f"{host}; the framework's peak on the device"
