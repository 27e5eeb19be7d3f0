"""An allocation that would take this process above a limit fails, instead of the kernel ending the process for it.

Linux refuses a mapping that would take ``VmData`` above RLIMIT_DATA. That counts address space, of which some is never
touched: stacks of threads, and free pages of the C heap that were given back. The limit is set so much higher; what is free
on the heap can be filled without a new mapping, and does not count as untouched.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from memfit.backends import host_allocator
from memfit.units import KIB, MIB

if sys.platform == "linux":
    import resource

_STATM = Path("/proc/self/statm")

_FULL = 0.9
"""Of the bound, what is held where the heap's free pages go back before what must not fail."""

_GAP = 64 * KIB
"""The smallest gap that is closed."""

_GAPS = 16 * MIB
"""Where a step finds fewer bytes in gaps, or outside of them, it cannot have failed for them."""

_ROOM = 16 * MIB
"""A gap that takes what a step allocates as fresh memory does."""

_INTERVAL = 0.05
"""Seconds between two looks, which take about 50 microseconds."""


class HostBound:
    """A bound on the anonymous resident bytes of this process, in force inside of ``applied``.

    Args:
        most_bytes: The bound.

    Attributes:
        is_step_compiled: Whether what runs under the bound is compiled as a whole; may be set.
    """

    def __init__(self, most_bytes: int) -> None:
        self.is_step_compiled = False
        self._most = most_bytes
        self._untouched = self._gaps = 0
        self._keeps_closed = self._has_looked = False
        self._limit = self._reached = 0
        self._next_look = 0.0
        self._soft = resource.RLIM_INFINITY
        self._openers: list[Callable[[], None]] = []
        self._open_small: Callable[[], None] = lambda: None
        self.calibrate()

    @staticmethod
    def is_possible() -> bool:
        """Whether this system has such a limit, and says what the bound needs: Linux with glibc 2.33 or later."""
        return sys.platform == "linux" and _STATM.exists() and host_allocator.free_bytes() is not None

    def calibrate(self) -> None:
        """Looks anew how much address space is never touched; gives the heap's free pages back for that."""
        host_allocator.trim()
        self._look_anew()

    def finds_room(self) -> bool:
        """After an allocation that failed, for the same step: whether the bound was too low, once a plan.

        Steps start threads and make code, of whose address space little is ever touched. What has come since the last look
        counted as memory. Gaps are closed as after any failure.
        """
        if self._has_looked:
            return False
        self._has_looked, before = True, self._untouched
        self.calibrate()
        if self._untouched < before + _GAPS:
            return False
        self._close()
        return True

    def start_over(self) -> None:
        """After an allocation that failed, for a smaller step: closes the heap's gaps and calibrates.

        glibc gives the thread memory of another heap from then on, and the thread comes back to gaps of the heap before only
        where nothing can be mapped any more. They would be taken for room, and smaller steps would have none.
        """
        self._keeps_closed = self._has_looked = False
        self._close()

    def keep_gaps_closed(self) -> bool:
        """After an allocation that failed, for the same step: from now on each begins without small gaps, which grow from one
        to the next. The pages that it takes are faulted in anew then.

        Returns:
            False where the step that failed had hardly any.
        """
        if self._keeps_closed or self._gaps < _GAPS:
            return False
        self._close()
        self._keeps_closed = True
        return True

    def _close(self) -> None:
        self._open_small()
        self._openers.append(host_allocator.closed_gaps(_GAP))
        self._look_anew()

    def _close_small(self) -> None:
        """In the place of those of the step before."""
        self._open_small()
        self._open_small = host_allocator.closed_gaps(_GAP, open_from=_ROOM, left=False)
        self.calibrate()  # the search has made the heap larger

    def let_go(self) -> None:
        """Opens gaps that are closed."""
        self._open_small()
        while self._openers:
            self._openers.pop()()
        self._keeps_closed = False
        self._look_anew()  # what was closed is room again

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, allocations fail that would take the process above the bound. Not to be nested."""
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        self._soft = soft
        if self._keeps_closed:
            self._close_small()
        else:
            self._look()
        limit = self._limit
        if resource.RLIM_INFINITY != soft <= limit or resource.RLIM_INFINITY != hard <= limit:
            yield
            return
        # Where the heap has free pages, more is mapped than the bound allows.
        self._reached = max(limit, host_allocator.mapped_bytes())
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Inside of ``applied``: no allocation fails, for what cannot be undone; the heap's free pages go back first where
        little is left."""
        bounded, hard = resource.getrlimit(resource.RLIMIT_DATA)
        pages = _pages()
        if (pages.resident - pages.of_files) * resource.getpagesize() > _FULL * self._most:
            host_allocator.trim()
        resource.setrlimit(resource.RLIMIT_DATA, (self._soft, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (bounded, hard))

    @contextlib.contextmanager
    def raised(self, num_bytes: int) -> Iterator[None]:
        """Inside of ``applied``: so much more may be mapped than the bound allows, or than was mapped as the step began.

        Raises:
            MemoryError: Half of that is taken already, from an earlier time.
        """
        bounded, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if bounded == self._limit:  # neither lifted nor the user's own
            if host_allocator.mapped_bytes() > self._reached + num_bytes // 2:
                raise MemoryError("The bound on memory is reached.")
            higher = self._reached + num_bytes
            resource.setrlimit(
                resource.RLIMIT_DATA, (higher if hard == resource.RLIM_INFINITY else min(hard, higher), hard)
            )
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (bounded, hard))

    def _look(self) -> None:
        """What was untouched at the last look may have been freed since; new stacks and arrays may have come."""
        if time.monotonic() >= self._next_look:
            self._look_anew(at_least=self._untouched)

    def _look_anew(self, *, at_least: int = 0) -> None:
        untouched, self._gaps = _mapped_and_untouched(), host_allocator.free_bytes() or 0
        self._untouched = min(max(at_least, untouched - self._gaps), untouched)
        self._limit = self._most + self._untouched
        self._next_look = time.monotonic() + _INTERVAL


def _mapped_and_untouched() -> int:
    """Bytes of private, writable address space that no page of memory stands behind."""
    pages = _pages()
    return (pages.data - (pages.resident - pages.of_files)) * resource.getpagesize()


class _Pages(NamedTuple):
    resident: int
    of_files: int
    data: int


def _pages() -> _Pages:
    fields = [int(field) for field in _STATM.read_bytes().split()]
    return _Pages(fields[1], fields[2], fields[5])
