"""Pressure stall information: how much of the time programs wait for memory. Linux 4.20 and later, where it is switched on.

Source: the kernel's Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import re
from pathlib import Path

from memfit.budgeting import cgroup

_FULL = re.compile(r"^full avg10=(\d+(?:\.\d+)?)", re.MULTILINE)


def stalled_share(*, root: Path = Path("/")) -> float | None:
    """The share of the last ten seconds in which all programs at once waited for memory: 0.0 to 1.0.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.

    Returns:
        The larger of the machine's and the own control group's; None where the kernel does not tell.
    """
    files = [root / "proc/pressure/memory"]
    files += [group.folder / "memory.pressure" for group in cgroup.groups(root=root) if group.version == 2]
    shares = [share for share in map(_share, files) if share is not None]
    return max(shares, default=None)


def _share(path: Path) -> float | None:
    try:
        match = _FULL.search(path.read_text())
    except OSError:
        return None
    return None if match is None else float(match[1]) / 100
