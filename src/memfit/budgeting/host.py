"""The host ceiling of this process: what it holds, and what it can still get before the kernel kills it."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from memfit import units
from memfit.budgeting import cgroup, usage
from memfit.budgeting.ceiling import Ceiling

# MemAvailable is the kernel's own estimate, and the rest of the machine goes on living: a browser, a notebook server,
# an ssh login. Below a few percent free the kernel drops and rereads program code all the time, and the machine stands
# still long before anything is killed. A control group's limit needs no such reserve: the kernel keeps to it exactly.
RESERVED_PERCENT = 3


def host_ceiling(*, root: Path = Path("/")) -> Ceiling:
    """The most anonymous bytes that this process may hold, what it holds already included.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.

    Returns:
        The own anonymous bytes plus the least of: MemAvailable less a reserve, the room in each control group that
        applies, and the process's resource limits. ``psutil`` answers where there is no /proc.
    """
    held = usage.reading(root=root).host_bytes
    free = min((_available(root), *_group_room(root), *_resource_room(root)), key=lambda room: room.bytes)
    source = f"{units.text(held)} held by this process and {units.text(free.bytes)} free: {free.source}"
    return Ceiling(max(1, held + free.bytes), source)


def free_bytes() -> int:
    """Bytes that this process may still take."""
    return max(0, host_ceiling().bytes - usage.reading().host_bytes)


def host_total(*, root: Path = Path("/")) -> Ceiling:
    """All the memory that there is for this process, in use or not: the machine's, or the least limit of its groups.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.
    """
    total = _meminfo(root).get("MemTotal")
    machine = Ceiling(psutil.virtual_memory().total if total is None else total, "the machine's memory")
    groups = [Ceiling(limit.limit_bytes, limit.source) for limit in cgroup.limits(root=root)]
    return min((machine, *groups), key=lambda bound: bound.bytes)


def _available(root: Path) -> Ceiling:
    meminfo = _meminfo(root)
    if "MemAvailable" in meminfo:
        total, available, name = meminfo.get("MemTotal", 0), meminfo["MemAvailable"], "MemAvailable"
    else:
        memory = psutil.virtual_memory()
        total, available, name = memory.total, memory.available, "available memory as psutil reports it"
    reserved = total * RESERVED_PERCENT // 100
    source = f"{name}, less {RESERVED_PERCENT} % of the machine ({units.text(reserved)}) left to the rest of it"
    return Ceiling(max(0, available - reserved), source)


def _group_room(root: Path) -> list[Ceiling]:
    return [
        Ceiling(limit.free_bytes, f"{limit.source} allows {units.text(limit.limit_bytes)}, pages of files not counted")
        for limit in cgroup.limits(root=root)
    ]


def _resource_room(root: Path) -> list[Ceiling]:
    """Room under RLIMIT_AS and RLIMIT_DATA, which bound address space rather than resident bytes.

    Address space that is taken but not yet touched counts as taken: the limit refuses the next mapping, whatever of the
    old ones is in use.
    """
    if sys.platform == "win32":
        return []
    import resource

    rooms = []
    status = _kilobyte_lines(root / "proc/self/status")
    for name, taken in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            room = max(0, limit - status.get(taken, 0))
            rooms.append(Ceiling(room, f"the resource limit {name} is {units.text(limit)}"))
    return rooms


def _meminfo(root: Path) -> dict[str, int]:
    return _kilobyte_lines(root / "proc/meminfo")


def _kilobyte_lines(path: Path) -> dict[str, int]:
    """Bytes by name from lines like ``MemTotal:  24684092 kB``; empty where the file cannot be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines]
    return {
        field[0].rstrip(":"): 1024 * int(field[1])
        for field in fields
        if len(field) == 3 and field[2] == "kB" and field[1].isdigit()
    }
