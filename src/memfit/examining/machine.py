"""The machine and its set-up: limits, free memory, the GPU and who holds it, what frameworks are told."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import psutil

from memfit import units
from memfit.backends import surroundings
from memfit.budgeting import device, host, stalls, usage
from memfit.errors import MemfitError
from memfit.examining.findings import Finding
from memfit.records import DeviceMemory

_LITTLE = units.GIB
_SMALL_SHARED = 256 * units.MIB


def examined(*, root: Path = Path("/")) -> list[Finding]:
    """What there is to say about this machine; imports no framework.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.
    """
    return [*_host(root), *_shared(root), *_gpu(), *_settings()]


def _host(root: Path) -> list[Finding]:
    total, ceiling = host.host_total(root=root), host.host_ceiling(root=root)
    found = [
        Finding("fact", f"Memory for this process: {total.source}", total.bytes),
        Finding("fact", f"What a process may hold now: {ceiling.source}", ceiling.bytes),
    ]
    if ceiling.bytes < _LITTLE:
        cure = "Close other programs or notebooks: what they hold cannot be trained in."
        found.append(Finding("warning", "There is little free memory.", ceiling.bytes, cure))
    if not (root / "proc/self/status").exists():
        what = f"No /proc on this system ({sys.platform}): memory is read through psutil"
        with usage.Gauge(root=root) as gauge:
            found.append(Finding("note", f"{what} ({gauge.source}); control groups and `memfit run` need Linux."))
    stalled = stalls.stalled_share()
    if stalled is not None and stalled >= 0.1:
        cure = "Something takes all memory: look with top, and end it."
        found.append(Finding("warning", f"Programs wait for memory {stalled:.0%} of the time.", None, cure))
    swap = psutil.swap_memory()
    if swap.total and swap.used > 0.5 * swap.total:
        cure = "Training in swapped memory is many times slower: free memory first."
        found.append(Finding("warning", "More than half of the swap space is in use.", int(swap.used), cure))
    return found


def _shared(root: Path) -> list[Finding]:
    shared = root / "dev/shm"
    if not shared.is_dir():
        return []
    total = shutil.disk_usage(shared).total
    if total >= _SMALL_SHARED:
        return []
    cure = "Start the container with --shm-size=1g: loaders with worker processes pass batches through it."
    return [Finding("warning", "/dev/shm is small.", total, cure)]


def _gpu() -> list[Finding]:
    use = device.device_use(DeviceMemory("gpu", 0, 0, 0))
    if use is None:
        return [Finding("fact", "No NVIDIA GPU that can be asked (no driver, no NVML, or none is visible).")]
    found = [Finding("fact", f"{use.name}: {units.text(use.free_bytes)} of it are free", use.total_bytes)]
    for process in use.others:
        cure = "End it, if it is yours and done: a notebook keeps its GPU memory until its kernel is shut down."
        what = f"{process.name} (process {process.pid}) holds memory of the {use.name}."
        found.append(Finding("warning" if process.bytes > use.total_bytes // 10 else "note", what, process.bytes, cure))
    return found


def _settings() -> list[Finding]:
    installed = surroundings.versions()
    names = ", ".join(f"{name} {version}" for name, version in installed.items()) or "none"
    found = [Finding("fact", f"Installed: {names}")]
    found += [Finding("fact", f"{name}={os.environ[name]}") for name in surroundings.SETTINGS if name in os.environ]
    has_gpu = device.device_use(DeviceMemory("gpu", 0, 0, 0)) is not None
    try:
        troubles = surroundings.troubles(os.environ, installed, has_gpu=has_gpu)
    except ValueError as error:  # a version that is no number
        raise MemfitError(f"The installed versions cannot be read ({error}). Received: {installed}.") from error
    return found + [Finding("warning" if one.serious else "note", one.what, None, one.cure) for one in troubles]
