"""Memory limits of Linux control groups, version 1, version 2, and both at once.

A process is bound by the limit of its own group and of every group above it. Pages of files count towards a group's
use, but the kernel takes them back before it kills, so they are taken off here.

Source: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst and Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

# Version 1 writes "no limit" as the highest multiple of the page size below 2**63. Nothing has an exbibyte.
_UNLIMITED = 1 << 60
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclasses.dataclass(frozen=True)
class Group:
    """A process's place in one memory hierarchy.

    Attributes:
        version: 1 or 2.
        mount: The folder where the hierarchy is mounted.
        folder: The process's own group: ``mount`` itself or a folder below it.
    """

    version: int
    mount: Path
    folder: Path

    @property
    def levels(self) -> tuple[Path, ...]:
        """The own group and every one above it, the mount included."""
        above = [parent for parent in self.folder.parents if parent.is_relative_to(self.mount)]
        return (self.folder, *above)


@dataclasses.dataclass(frozen=True)
class Limit:
    """One level's limit.

    Attributes:
        limit_bytes: What the whole group may take.
        free_bytes: What it may still take, pages of files counted as free; never negative.
        source: The file that says so, without the machine's folders.
    """

    limit_bytes: int
    free_bytes: int
    source: str


def groups(*, root: Path = Path("/")) -> tuple[Group, ...]:
    """The groups that may limit this process's memory: none, one, or one of each version.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.
    """
    own = _own_paths(root)
    found = []
    for version, mount, mounted_path in _mounts(root):
        if version in own and mount.is_dir():
            found.append(Group(version, mount, _own_folder(mount, mounted_path, own[version])))
    return tuple(found)


def limits(*, root: Path = Path("/")) -> tuple[Limit, ...]:
    """The limits that apply to this process, every level of every hierarchy; unlimited levels are left out.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.
    """
    found = []
    for group in groups(root=root):
        for folder in group.levels:
            own = folder == group.folder
            found += _limits_v1(folder, own) if group.version == 1 else _limits_v2(folder, own)
    return tuple(found)


def file_bytes(folder: Path, version: int) -> int:
    """Bytes charged to a group that the kernel takes back before it kills: pages of files, and slab on version 2.

    Shared memory is in neither: the kernel counts it with "cache", but keeps it on the anonymous lists.
    """
    stat = _stat(folder / "memory.stat")
    if version == 2:
        return sum(stat.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))


def number(path: Path) -> int | None:
    """The whole number in a file, or None where it cannot be read or is "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _limits_v1(folder: Path, own: bool) -> list[Limit]:
    used = number(folder / "memory.usage_in_bytes")
    return _limit(folder, "memory.limit_in_bytes", used, 1, own)


def _limits_v2(folder: Path, own: bool) -> list[Limit]:
    used = number(folder / "memory.current")
    # Above memory.high nothing is killed, but every allocation is slowed down until training stands still.
    return _limit(folder, "memory.max", used, 2, own) + _limit(folder, "memory.high", used, 2, own)


def _limit(folder: Path, name: str, used: int | None, version: int, own: bool) -> list[Limit]:
    limit = number(folder / name)
    if limit is None or limit >= _UNLIMITED:
        return []
    # Where the use cannot be read the whole limit counts as free: a bound that is too high is better than none.
    needed = 0 if used is None else max(0, used - file_bytes(folder, version))
    level = "of this process's control group" if own else "of a control group above this process's"
    return [Limit(limit, max(0, limit - needed), f"{name} {level}")]


def _own_paths(root: Path) -> dict[int, str]:
    """This process's path in the memory hierarchies, by version, from lines like ``4:memory:/jobs/7``."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    paths = {}
    for line in lines:
        number_and_rest = line.split(":", 2)
        if len(number_and_rest) != 3:
            continue
        hierarchy, controllers, path = number_and_rest
        if hierarchy == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(root: Path) -> list[tuple[int, Path, str]]:
    """Version, mount folder and mounted path of each memory hierarchy; the usual places where no list can be read."""
    try:
        lines = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        usual = root / "sys/fs/cgroup"
        return [(1, usual / "memory", "/"), (2, usual, "/")]
    found = []
    for line in lines:
        # 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime [tags] - cgroup cgroup rw,memory
        before, separator, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if not separator or len(mount) < 5 or len(kind) < 3:
            continue
        folder = root / _plain(mount[4]).lstrip("/")
        if kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found.append((1, folder, _plain(mount[3])))
        elif kind[0] == "cgroup2":
            found.append((2, folder, _plain(mount[3])))
    return found


def _own_folder(mount: Path, mounted_path: str, own_path: str) -> Path:
    """The folder of the own group below a mount, or the mount itself where the path means nothing there.

    A container may see the host's path while only its own group is mounted (then ``mounted_path`` is a prefix of it or
    the path does not exist), or a path with ``..`` that leads out of its namespace. In all these cases the mount is the
    container's own group.
    """
    base = mounted_path.rstrip("/")
    if own_path != base and not own_path.startswith(base + "/"):
        return mount
    relative = own_path[len(base) :].strip("/")
    folder = mount / relative
    return folder if relative and ".." not in relative.split("/") and folder.is_dir() else mount


def _stat(path: Path) -> dict[str, int]:
    """The ``name number`` lines of a memory.stat; empty where it cannot be read."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _plain(path: str) -> str:
    r"""A path as /proc/self/mountinfo writes it, with blanks as ``\040``, as it is."""
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), path)
