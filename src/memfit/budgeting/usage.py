"""What a process holds now: anonymous bytes, which the kernel cannot take back, and bytes on the device."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from memfit.records import Reading

if TYPE_CHECKING:
    from memfit.backends.protocol import Backend

STATUS_SOURCE = "RssAnon and RssShmem of /proc/self/status"
FALLBACK_SOURCE = "resident bytes from psutil, file pages left out where the system tells them apart"

_RSS_ANON = re.compile(rb"^RssAnon:\s*(\d+) kB", re.MULTILINE)
_RSS_SHMEM = re.compile(rb"^RssShmem:\s*(\d+) kB", re.MULTILINE)
_PEAK = re.compile(rb"^VmHWM:\s*(\d+) kB", re.MULTILINE)
# A status file is about 1.5 KiB; lists of processors and memory nodes make it longer on large machines.
_STATUS_SIZE = 8192


class Gauge:
    """Reads one process's anonymous bytes again and again through one open file.

    A reading is one system call and one search. Since Linux 6.2 the kernel's counters are exact to a few pages for each
    processor only: a few MiB on a machine with 32 of them.

    Args:
        pid: The process, or None for this one.
        root: Where ``proc`` is looked for.

    Example:
        >>> with Gauge() as gauge:
        ...     gauge.read() > 0
        True
    """

    def __init__(self, pid: int | None = None, *, root: Path = Path("/")) -> None:
        self._process = psutil.Process(pid)
        self._file: int | None = None
        try:
            self._file = os.open(root / "proc" / ("self" if pid is None else str(pid)) / "status", os.O_RDONLY)
            if anonymous_bytes(os.pread(self._file, _STATUS_SIZE, 0)) is None:
                self.close()
        except OSError:
            self.close()

    @property
    def source(self) -> str:
        """Where the numbers are read."""
        return FALLBACK_SOURCE if self._file is None else STATUS_SOURCE

    def read(self) -> int:
        """Anonymous resident bytes now; 0 once the process has ended.

        Raises:
            psutil.NoSuchProcess: The process has ended, on systems without /proc.
        """
        if self._file is None:
            return _psutil_bytes(self._process)
        try:
            return anonymous_bytes(os.pread(self._file, _STATUS_SIZE, 0)) or 0
        except ProcessLookupError:
            return 0

    def close(self) -> None:
        """Closes the file; a gauge that is closed goes on through psutil."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Gauge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def anonymous_bytes(status: bytes) -> int | None:
    """RssAnon + RssShmem in bytes, or None where the text has no RssAnon (some sandboxes, kernels before 4.5).

    Args:
        status: The content of a ``/proc/PID/status``.

    Example:
        >>> anonymous_bytes(b"VmRSS:  20 kB\\nRssAnon:  8 kB\\nRssFile:  10 kB\\nRssShmem:  2 kB\\n")
        10240
    """
    anonymous = _RSS_ANON.search(status)
    if anonymous is None:
        return None
    shared = _RSS_SHMEM.search(status)
    return 1024 * (int(anonymous[1]) + (0 if shared is None else int(shared[1])))


def reading(backend: Backend | None = None, *, root: Path = Path("/")) -> Reading:
    """What this process holds now.

    Args:
        backend: Asked for the bytes that live tensors take on the device; None leaves the device out.
        root: Where ``proc`` is looked for.
    """
    with Gauge(root=root) as gauge:
        host_bytes, source = gauge.read(), gauge.source
    device = None if backend is None else backend.device_memory()
    if device is None:
        return Reading(host_bytes, None, source)
    return Reading(host_bytes, device.used_bytes, f"{source}; the framework's count of live tensors")


def peak_resident_bytes(*, root: Path = Path("/")) -> int:
    """The most that was ever resident in this process, or since ``reset_peak_resident``: pages of files included.

    The kernel keeps no such mark for anonymous bytes alone; ``guarding.watch.Watcher`` samples those.
    """
    try:
        match = _PEAK.search((root / "proc/self/status").read_bytes())
    except OSError:
        match = None
    if match is not None:
        return 1024 * int(match[1])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_resident(*, root: Path = Path("/")) -> bool:
    """Makes ``peak_resident_bytes`` count from now on.

    Returns:
        Whether the system could.
    """
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _psutil_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    # Windows counts private pages; Linux without RssAnon says what is shared with files; macOS gives the total only.
    private = getattr(memory, "private", None)
    return int(private) if private is not None else max(0, memory.rss - getattr(memory, "shared", 0))
