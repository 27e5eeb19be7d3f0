"""Where memfit's files lie: on a disk, not in memory, and never filling it."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs
import psutil

_IN_MEMORY = ("tmpfs", "ramfs", "ramdisk")
_LEFT_FREE = 0.5
"""Share of the free disk that is left to others."""


def folders() -> list[Path]:
    """Folders that may hold what memfit keeps, the first choice first.

    ``MEMFIT_CACHE_DIR`` and no other where it is set; set to nothing, a folder that is removed when the process ends. Else
    the user's cache folder, then that for temporary files.
    """
    named = os.environ.get("MEMFIT_CACHE_DIR")
    if named is not None:
        return [Path(named) if named else _throwaway()]
    return [platformdirs.user_cache_path("memfit"), Path(tempfile.gettempdir())]


def roomy_folder(num_bytes: int) -> tuple[Path | None, str]:
    """One of ``folders`` with room for ``num_bytes``, and a sentence's part that says how much is free; None for none.

    One that lies in memory (tmpfs) is no disk; half of what is free stays free.
    """
    best = 0
    for folder in folders():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if existing is None or not os.access(existing, os.W_OK) or _file_system(existing) in _IN_MEMORY:
            continue
        free = psutil.disk_usage(str(existing)).free
        best = max(best, free)
        if num_bytes <= (1 - _LEFT_FREE) * free:
            return folder, f"{folder} has {free / 2**30:.1f} GiB free"
    return None, f"no disk has twice that free: the most is {best / 2**30:.1f} GiB"


def temporary_folder(parent: Path, prefix: str) -> Path:
    """A new folder of this process's own in ``parent``, removed at its end at the latest."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    atexit.register(remove, folder)
    return folder


def remove(folder: Path) -> None:
    """Deletes a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process of that number runs."""
    return psutil.pid_exists(process)


@functools.cache
def _throwaway() -> Path:
    return temporary_folder(Path("/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir()), "memfit-")


def _file_system(path: Path) -> str:
    """The type of the file system that ``path`` lies on."""
    resolved = path.resolve()
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: len(mount.mountpoint), reverse=True)
    return next((mount.fstype for mount in mounts if resolved.is_relative_to(mount.mountpoint)), "")
