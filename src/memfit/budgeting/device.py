"""The device ceiling of this process: what the framework may allocate, less what others hold on the device."""

from __future__ import annotations

import dataclasses
import os
from types import ModuleType
from typing import Any

import psutil

from memfit import units
from memfit.budgeting.ceiling import Ceiling
from memfit.records import DeviceMemory

# What a CUDA context and the libraries' kernels take on the device beside tensors: 0.2 to 0.5 GiB on current cards. The
# framework does not count it, NVML does.
CONTEXT_BYTES = 512 * units.MIB

# NVML's mark for "not available" in unsigned 64-bit fields.
_NOT_AVAILABLE = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class DeviceProcess:
    """A process on the device.

    Attributes:
        pid: Its number, as the driver sees it: in a container it may be the host's.
        name: Its name, or "unknown".
        bytes: What it holds there, its context included; 0 where the driver does not tell.
    """

    pid: int
    name: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class DeviceUse:
    """A device as the driver sees it.

    Attributes:
        name: The product, "Tesla T4".
        total_bytes: All its memory.
        free_bytes: What nobody holds.
        own_bytes: What this process holds, its context included, or None where it is not on the driver's list.
        others: The other processes, largest first.
    """

    name: str
    total_bytes: int
    free_bytes: int
    own_bytes: int | None
    others: tuple[DeviceProcess, ...]


def device_use(memory: DeviceMemory) -> DeviceUse | None:
    """The first visible NVIDIA device as the driver sees it, or None where that cannot be known for certain.

    ``CUDA_VISIBLE_DEVICES`` is followed: a number, a UUID or the start of one, a MIG instance.

    Args:
        memory: The device as the framework sees it; only a "gpu" is looked for.
    """
    if memory.kind != "gpu":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError, AttributeError):
        return None
    try:
        handle = _first_visible(pynvml)
        return None if handle is None else _use(pynvml, handle)
    except (pynvml.NVMLError, OSError, AttributeError, ValueError):
        return None
    finally:
        _shut_down(pynvml)


def device_ceiling(memory: DeviceMemory, use: DeviceUse | None) -> Ceiling:
    """The most bytes that this process's tensors may take on the device, what they take already included.

    Args:
        memory: The device as the framework sees it.
        use: The device as the driver sees it, or None where there is no driver to ask.

    Returns:
        The framework's limit, or less where other processes leave less.
    """
    framework = Ceiling(max(1, memory.total_bytes), f"the framework may allocate {units.text(memory.total_bytes)}")
    if use is None:
        return framework
    # A framework's pool is in use in the driver's eyes, and free for this process's tensors all the same. Where this
    # process is not on the list (containers hide it) it is taken to hold what no listed process does.
    listed = sum(process.bytes for process in use.others)
    own = use.total_bytes - use.free_bytes - listed if use.own_bytes is None else use.own_bytes
    room = use.free_bytes + max(0, own) - CONTEXT_BYTES
    shared = Ceiling(max(1, memory.used_bytes, room), _shared_source(use, listed))
    return min((framework, shared), key=lambda bound: bound.bytes)


def others_text(memory: DeviceMemory | None) -> str:
    """Who else holds memory on the device, as a sentence; empty where nobody does or it cannot be known."""
    use = None if memory is None else device_use(memory)
    others = [process for process in use.others if process.bytes] if use is not None else []
    if use is None or not others:
        return ""
    named = ", ".join(f"{process.name} (process {process.pid}) {units.text(process.bytes)}" for process in others[:5])
    return f"Others hold {units.text(sum(process.bytes for process in others))} of the {use.name}: {named}."


def _shared_source(use: DeviceUse, listed: int) -> str:
    free = f"{units.text(use.free_bytes)} of {units.text(use.total_bytes)} of {use.name} free"
    pool = "what this process holds there" if use.own_bytes is not None else "what no other listed process holds"
    source = f"{free}, plus {pool}, less {units.text(CONTEXT_BYTES)} for the driver's context"
    if not listed:
        return source
    names = ", ".join(f"{process.name} {units.text(process.bytes)}" for process in use.others[:3] if process.bytes)
    return f"{source}; others hold {units.text(listed)} ({names})"


def _use(nvml: ModuleType, handle: Any) -> DeviceUse:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = _processes(nvml, handle)
    own = max((process.bytes for process in processes if process.pid == os.getpid()), default=0)
    others = [process for process in processes if process.pid != os.getpid()]
    return DeviceUse(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        own_bytes=own or None,
        others=tuple(sorted(others, key=lambda process: -process.bytes)),
    )


def _processes(nvml: ModuleType, handle: Any) -> list[DeviceProcess]:
    """Who is on the device; the list is empty where the driver keeps it to itself."""
    found: dict[int, int] = {}
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            running = ask(handle)
        except nvml.NVMLError:
            continue
        for process in running:
            held = process.usedGpuMemory
            held = 0 if held is None or held >= _NOT_AVAILABLE else int(held)
            # A process that computes and draws is on both lists with the same number.
            found[process.pid] = max(found.get(process.pid, 0), held)
    return [DeviceProcess(pid, _process_name(pid), held) for pid, held in found.items()]


def _process_name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, ValueError):
        return "unknown"


def _first_visible(nvml: ModuleType) -> Any | None:
    """The handle of the device that the frameworks number 0, or None where it is not certain which one that is."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _by_index(nvml, 0)
    first = visible.split(",")[0].strip()
    if first.isdigit():
        return _by_index(nvml, int(first))
    if first.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    # CUDA takes the start of a UUID as well as the whole; NVML takes the whole only.
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    matching = [handle for handle in handles if first and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(first)]
    return matching[0] if len(matching) == 1 else None


def _by_index(nvml: ModuleType, index: int) -> Any | None:
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    if index >= len(handles):
        return None
    # CUDA numbers the fastest device first unless told otherwise; NVML goes by the bus. Equal devices keep that order.
    models = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    if len(models) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return None
    return handles[index]


def _text(name: str | bytes) -> str:
    """NVML's older bindings answer in bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _shut_down(nvml: ModuleType) -> None:
    try:
        nvml.nvmlShutdown()
    except (nvml.NVMLError, OSError, AttributeError):
        # The reading is made; a driver that will not say goodbye changes nothing about it.
        return
