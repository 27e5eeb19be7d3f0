"""Ways to hold a child process to a number of bytes: a control group where one can be made, a watcher anywhere.

A cage is made before the child, knows the child's peak and whether it died of the cap, and leaves nothing behind: no
process, no folder. ``capped.run_capped`` takes the first of ``CAGES`` that can be made.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from memfit.budgeting import cgroup
from memfit.probing.tree import Tree

_FOLDER_NAME = re.compile(r"memfit-(\d+)-[0-9a-f]+")
_END_SECONDS = 5.0


class Cage(Protocol):
    """Holds one child, and the children of that child, to a number of bytes."""

    mechanism: str
    """How, in words."""
    folder: str
    """The control group that the child puts itself into, or "" where there is none."""
    interval: float
    """Seconds between two calls of ``sample``."""
    peak_bytes: int
    """The most that the child and its children held, pages of files not counted."""

    def hold(self, pid: int) -> None:
        """Takes the child, which has just been started."""

    def sample(self) -> None:
        """Looks at what the child holds now. Called in a thread, from ``hold`` until the child has ended."""

    def killed(self, returncode: int) -> bool:
        """Whether a process died of the cap, given what the child ended with in the shell's way."""

    def end(self) -> None:
        """Kills every process that is left. Safe to call more than once."""

    def remove(self) -> None:
        """Takes away what the cage is made of, once the child is reaped."""


class GroupCage:
    """A control group of its own with a memory limit: the kernel keeps to it and kills at it."""

    interval = 0.02

    def __init__(self, path: Path, version: int, mechanism: str) -> None:
        self.mechanism = mechanism
        self.folder = str(path)
        self.peak_bytes = 0
        self._path = path
        self._version = version
        self._peak_file = path / ("memory.max_usage_in_bytes" if version == 1 else "memory.peak")
        self._use_file = path / ("memory.usage_in_bytes" if version == 1 else "memory.current")
        self._last_peak = 0
        self._last_files = 0

    @classmethod
    def version_1(cls, cap_bytes: int, *, root: Path = Path("/")) -> GroupCage | None:
        """A version 1 group below this process's own, or None where none can be made."""
        group = _group(1, root)
        path = None if group is None else _new_folder(group.folder)
        if path is None:
            return None
        try:
            (path / "memory.limit_in_bytes").write_text(str(cap_bytes))
        except OSError:
            _remove_folder(path)
            return None
        # Without these a child over its cap is swapped out and crawls instead of dying. Neither file need be there.
        _try_to_write(path / "memory.swappiness", "0")
        _try_to_write(path / "memory.memsw.limit_in_bytes", str(cap_bytes))
        return cls(path, 1, "cgroup v1 memory limit")

    @classmethod
    def version_2(cls, cap_bytes: int, *, root: Path = Path("/"), together: bool = True) -> GroupCage | None:
        """A version 2 group, or None where none can be made.

        With ``together`` the kernel kills all processes of the group at once, else the largest, and the others live on.

        A group that holds processes cannot hand the memory controller to groups below it (the root excepted), so the
        new group mostly stands beside this process's own. Other groups are left as they are: nothing is enabled.
        """
        group = _group(2, root)
        for parent in () if group is None else group.levels[:2]:
            if "memory" not in _words(parent / "cgroup.subtree_control"):
                continue
            path = _new_folder(parent)
            if path is None:
                continue
            try:
                (path / "memory.max").write_text(str(cap_bytes))
            except OSError:
                _remove_folder(path)
                continue
            _try_to_write(path / "memory.swap.max", "0")
            # One process of a tree that is killed leaves the others waiting for it: all or none.
            _try_to_write(path / "memory.oom.group", str(int(together)))
            return cls(path, 2, "cgroup v2 memory.max")
        return None

    def hold(self, pid: int) -> None:
        """The child puts itself into the group before it becomes the command: nothing is left to do."""

    def sample(self) -> None:
        """Corrects the kernel's peak, which counts pages of files, by the pages of files that were there then.

        The kernel's peak misses no spike. Between two samples the pages of files change little; the smaller of the two
        counts is taken off, so that the figure is rather too high: by a large file that was deleted between the two, or
        what a child read that ended before the first.
        """
        files = cgroup.file_bytes(self._path, self._version)
        highest = max(self._peak_since_last_sample(), cgroup.number(self._use_file) or 0)
        self.peak_bytes = max(self.peak_bytes, highest - min(files, self._last_files))
        self._last_files = files

    def killed(self, returncode: int) -> bool:
        """Whether the kernel killed a process of the group for memory.

        Kernels before 4.13 do not count that in version 1: a child that was killed after it met the limit counts.
        """
        words = _words(self._path / ("memory.oom_control" if self._version == 1 else "memory.events"))
        if "oom_kill" in words:
            return int(words[words.index("oom_kill") + 1]) > 0
        met = (cgroup.number(self._path / name) or 0 for name in ("memory.failcnt", "memory.memsw.failcnt"))
        return returncode == 128 + signal.SIGKILL and any(met)

    def end(self) -> None:
        """Kills every process of the group, and those that they start meanwhile."""
        deadline = time.monotonic() + _END_SECONDS
        while (pids := _words(self._path / "cgroup.procs")) and time.monotonic() < deadline:
            for pid in map(int, pids):
                # 0 stands for a process of another namespace, and would mean this process's own group to kill().
                if pid > 1 and pid != os.getpid():
                    _kill(pid)
            time.sleep(0.005)

    def remove(self) -> None:
        """Removes the folder."""
        _remove_folder(self._path)

    def _peak_since_last_sample(self) -> int:
        """The kernel's peak if it is a new one, else 0. Version 1 can be made to count anew: there each one is new."""
        peak = cgroup.number(self._peak_file) or 0
        is_new = peak > self._last_peak
        reset = self._version == 1 and _try_to_write(self._peak_file, "0")
        self._last_peak = 0 if reset else peak
        return peak if is_new else 0


class WatchedCage:
    """A watcher that adds up what the child's processes hold and kills them at the cap.

    What is taken between two looks goes over the cap: some tens of MiB at the speed at which memory can be filled.
    """

    mechanism = "watcher that kills the child at the cap"
    folder = ""
    interval = 0.01

    def __init__(self, cap_bytes: int, *, together: bool = True) -> None:
        self.peak_bytes = 0
        self._cap_bytes = cap_bytes
        self._together = together
        self._tree: Tree | None = None
        self._killed = False

    @classmethod
    def anywhere(cls, cap_bytes: int, *, together: bool = True) -> WatchedCage | None:
        """A watcher for a child yet to be started; without ``together`` it kills the largest process and goes on."""
        return cls(cap_bytes, together=together)

    def hold(self, pid: int) -> None:
        """Takes the child."""
        self._tree = Tree(pid)

    def sample(self) -> None:
        """Adds up, and kills at the cap."""
        if self._tree is None:
            return
        held = self._tree.anonymous_bytes(at_least=min(self.peak_bytes, self._cap_bytes))
        self.peak_bytes = max(self.peak_bytes, held)
        if held <= self._cap_bytes:
            return
        if not self._together:
            self._killed = True
            self._tree.kill_largest()
        elif not self._killed:
            self._killed = True
            self._tree.kill()

    def killed(self, returncode: int) -> bool:
        """Whether the watcher killed the child."""
        return self._killed

    def end(self) -> None:
        """Kills the child and every process that was seen below it."""
        if self._tree is not None:
            self._tree.kill()

    def remove(self) -> None:
        """Closes the files that were read."""
        if self._tree is not None:
            self._tree.close()


CAGES: tuple[Callable[[int], Cage | None], ...] = (GroupCage.version_1, GroupCage.version_2, WatchedCage.anywhere)
"""Every way, the exact ones first. What goes over the cap ends as a whole."""

ONE_BY_ONE: tuple[Callable[[int], Cage | None], ...] = (
    GroupCage.version_1,
    functools.partial(GroupCage.version_2, together=False),
    functools.partial(WatchedCage.anywhere, together=False),
)
"""The same for a child that outlives its own children: the largest process is killed and the others live on, as in a
container."""


def _group(version: int, root: Path) -> cgroup.Group | None:
    """This process's own group of a version, on Linux."""
    if sys.platform != "linux":
        return None
    return next((group for group in cgroup.groups(root=root) if group.version == version), None)


def _new_folder(parent: Path) -> Path | None:
    _remove_orphans(parent)
    path = parent / f"memfit-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError:
        return None
    return path


def _remove_orphans(parent: Path) -> None:
    """Removes what programs left that were killed before they could; the kernel refuses a folder that is in use."""
    try:
        names = [path.name for path in parent.iterdir()]
    except OSError:
        return
    for match in filter(None, map(_FOLDER_NAME.fullmatch, names)):
        if not psutil.pid_exists(int(match[1])):
            _remove_folder(parent / match[0], seconds=0)


def _remove_folder(path: Path, *, seconds: float = _END_SECONDS) -> None:
    """Removes a group; one whose last process is still being taken apart is busy for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.01)
        else:
            return


def _try_to_write(path: Path, text: str) -> bool:
    # Opened without creating: a kernel that lacks the file is to stay a kernel that lacks the file.
    try:
        file = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(file, text.encode())
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
