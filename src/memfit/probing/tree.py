"""A process and everything below it: what they hold together, and their end."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from memfit.budgeting.usage import Gauge

# Finding a process's children reads the status of every process of the machine; what they hold is read at every sample.
_SEARCH_SECONDS = 0.2
_PROPORTIONAL = re.compile(rb"^(?:Pss_Anon|Pss_Shmem):\s*(\d+) kB", re.MULTILINE)


class Tree:
    """A child process, its children, and theirs. Used by a sampling thread and by the thread that ends it.

    Args:
        pid: The child; leader of its process group where the system has such groups.
    """

    def __init__(self, pid: int) -> None:
        self._lock = threading.Lock()
        self._root = psutil.Process(pid)
        self._seen: dict[int, psutil.Process] = {pid: self._root}
        self._gauges: dict[int, Gauge] = {pid: Gauge(pid)}
        self._next_search = time.monotonic() + _SEARCH_SECONDS

    def anonymous_bytes(self, *, at_least: int = 0) -> int:
        """Anonymous bytes of all processes together.

        Pages that a fork shares with its parent are in both processes' counts. A sum of several processes that is above
        ``at_least`` is therefore taken again with shared pages divided among those who share them, which is slower.

        Args:
            at_least: The number above which it matters whether pages are counted twice.
        """
        with self._lock:
            if time.monotonic() >= self._next_search:
                self._search()
            held = {pid: _read(gauge) for pid, gauge in self._gauges.items()}
            total = sum(held.values())
            if total <= at_least or sum(1 for num_bytes in held.values() if num_bytes) < 2:
                return total
            return sum(_proportional_bytes(pid, num_bytes) for pid, num_bytes in held.items())

    def kill(self) -> None:
        """Kills every process, those in the child's process group and those that left it after they were seen."""
        with self._lock:
            self._search()
            # As long as the child is not reaped the group's number is its own; later it may be another's.
            if sys.platform != "win32" and self._root.is_running():
                _kill_group(self._root.pid)
            for process in self._seen.values():
                try:
                    process.kill()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue

    def kill_largest(self) -> None:
        """Kills the process that holds the most, as the kernel would."""
        with self._lock:
            self._search()
            pid = max(self._gauges, key=lambda one: _read(self._gauges[one]))
            try:
                self._seen[pid].kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                return

    def close(self) -> None:
        """Closes the open files."""
        with self._lock:
            for gauge in self._gauges.values():
                gauge.close()
            self._gauges.clear()

    def _search(self) -> None:
        """Adds processes that are new and forgets those that have ended; one whose parent has ended stays known."""
        self._next_search = time.monotonic() + _SEARCH_SECONDS
        for pid in [pid for pid, process in self._seen.items() if process != self._root and not process.is_running()]:
            del self._seen[pid]
            self._gauges.pop(pid).close()
        for process in self._descendants():
            if process.pid not in self._seen:
                try:
                    gauge = Gauge(process.pid)
                except psutil.NoSuchProcess:
                    continue
                self._seen[process.pid] = process
                self._gauges[process.pid] = gauge

    def _descendants(self) -> list[psutil.Process]:
        """What is below the child, or, once that has ended, below those that were."""
        found: list[psutil.Process] = []
        for process in self._seen.values():
            try:
                found += process.children(recursive=True)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if process == self._root and found:
                break
        return found


def _read(gauge: Gauge) -> int:
    try:
        return gauge.read()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _proportional_bytes(pid: int, fallback: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
    except OSError:
        return fallback
    parts = _PROPORTIONAL.findall(rollup)
    return 1024 * sum(map(int, parts)) if parts else fallback


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
