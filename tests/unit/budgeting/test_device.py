"""NVML through a fake module: a machine with a GPU is not needed, and one that has one is not asked."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from memfit.budgeting import device
from memfit.budgeting.device import CONTEXT_BYTES, DeviceProcess, DeviceUse
from memfit.records import DeviceMemory

GIB = 1024**3
T4 = DeviceMemory("gpu", 15 * GIB, 0, 0)


class FakeNvml(ModuleType):
    """Some devices; ``failing`` names the function that raises."""

    class NVMLError(Exception):
        pass

    def __init__(self, *devices: SimpleNamespace, failing: str = "", error: Exception | None = None) -> None:
        super().__init__("pynvml")
        self.devices = devices
        self.failing = failing
        self.error = error or self.NVMLError(failing)
        self.num_open = 0

    def _enter(self, name: str) -> None:
        if name == self.failing:
            raise self.error

    def nvmlInit(self) -> None:  # noqa: N802
        self._enter("nvmlInit")
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1
        self._enter("nvmlShutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._enter("nvmlDeviceGetCount")
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimpleNamespace:  # noqa: N802
        self._enter("nvmlDeviceGetHandleByIndex")
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> SimpleNamespace:  # noqa: N802
        for found in self.devices:
            if found.uuid == uuid:
                return found
        raise self.NVMLError("not found")

    def nvmlDeviceGetUUID(self, handle: SimpleNamespace) -> str:  # noqa: N802
        return str(handle.uuid)

    def nvmlDeviceGetName(self, handle: SimpleNamespace) -> Any:  # noqa: N802
        return handle.name

    def nvmlDeviceGetMemoryInfo(self, handle: SimpleNamespace) -> SimpleNamespace:  # noqa: N802
        self._enter("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=handle.total, free=handle.free)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: SimpleNamespace) -> list[SimpleNamespace]:  # noqa: N802
        self._enter("nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in handle.processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: SimpleNamespace) -> list[SimpleNamespace]:  # noqa: N802
        raise self.NVMLError("not supported")


def gpu(name: str = "Tesla T4", uuid: str = "GPU-aaaa-1", *, free: int = 14 * GIB, **processes: Any) -> SimpleNamespace:
    held = {int(pid.removeprefix("p")): num_bytes for pid, num_bytes in processes.items()}
    return SimpleNamespace(name=name, uuid=uuid, total=15 * GIB, free=free, processes=held)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def use_of(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> DeviceUse | None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    use = device.device_use(T4)
    assert nvml.num_open == 0
    return use


def test_use_of_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(
        gpu(name=b"Tesla T4", free=9 * GIB, **{f"p{os.getpid()}": 2 * GIB, "p1": GIB, "p999999999": 3 * GIB})
    )  # type: ignore[arg-type]
    use = use_of(monkeypatch, nvml)
    assert use is not None
    assert (use.name, use.total_bytes, use.free_bytes, use.own_bytes) == ("Tesla T4", 15 * GIB, 9 * GIB, 2 * GIB)
    assert [(process.pid, process.bytes) for process in use.others] == [(999999999, 3 * GIB), (1, GIB)]
    assert use.others[0].name == "unknown"


@pytest.mark.parametrize("held", [None, 2**64 - 1])
def test_processes_whose_bytes_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch, held: int | None) -> None:
    use = use_of(monkeypatch, FakeNvml(gpu(**{"p1": held, f"p{os.getpid()}": held})))
    assert use is not None
    assert use.own_bytes is None
    assert [process.bytes for process in use.others] == [0]


@pytest.mark.parametrize(
    "failing",
    ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"],
)
@pytest.mark.parametrize("error", [None, OSError("no library"), AttributeError("no such function")])
def test_a_driver_that_fails_is_no_driver(
    monkeypatch: pytest.MonkeyPatch, failing: str, error: Exception | None
) -> None:
    assert use_of(monkeypatch, FakeNvml(gpu(), failing=failing, error=error)) is None


@pytest.mark.parametrize("failing", ["nvmlShutdown", "nvmlDeviceGetComputeRunningProcesses"])
def test_a_driver_that_fails_at_what_is_not_needed(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    assert use_of(monkeypatch, FakeNvml(gpu(), failing=failing)) is not None


def test_no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device.device_use(T4) is None


def test_other_kinds_of_device_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu()))
    assert device.device_use(DeviceMemory("tpu", GIB, 0, 0)) is None


@pytest.mark.parametrize(
    ("visible", "free"),
    [
        (None, 1),
        ("0", 1),
        ("1", 2),
        (" 1 ,0", 2),
        ("GPU-bbbb-2", 2),
        ("GPU-bb", 2),
        ("MIG-cccc", 3),
        ("", None),
        ("-1", None),
        ("7", None),
        ("GPU-", None),
        ("MIG-dddd", None),
        ("NoDevFiles", None),
    ],
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str | None, free: int | None) -> None:
    nvml = FakeNvml(gpu(uuid="GPU-aaaa-1", free=1), gpu(uuid="GPU-bbbb-2", free=2), gpu(uuid="MIG-cccc", free=3))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    use = use_of(monkeypatch, nvml)
    assert (None if use is None else use.free_bytes) == free


def test_numbers_of_different_models_mean_nothing_without_the_bus_order(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(gpu("Quadro P400"), gpu("A100", free=5))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert use_of(monkeypatch, nvml) is None
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    use = use_of(monkeypatch, nvml)
    assert use is not None
    assert use.free_bytes == 5


def seen(free: int, own: int | None, *others: int) -> DeviceUse:
    return DeviceUse("T4", 15 * GIB, free, own, tuple(DeviceProcess(7, "rival", held) for held in others))


def test_ceiling_without_a_driver_is_the_frameworks() -> None:
    ceiling = device.device_ceiling(DeviceMemory("gpu", 11 * GIB, GIB, GIB), None)
    assert ceiling.bytes == 11 * GIB
    assert ceiling.source == "the framework may allocate 11 GiB"


def test_ceiling_of_a_pool_taken_in_advance_is_the_pool() -> None:
    # TensorFlow and JAX take nearly all at the start: what is free is little, and the pool is this process's.
    memory = DeviceMemory("gpu", 13 * GIB, GIB, 2 * GIB)
    assert device.device_ceiling(memory, seen(GIB, 14 * GIB)).bytes == 13 * GIB


def test_ceiling_of_a_pool_in_a_container_that_hides_its_owner() -> None:
    memory = DeviceMemory("gpu", 13 * GIB, GIB, 2 * GIB)
    assert device.device_ceiling(memory, seen(GIB, None)).bytes == 13 * GIB


def test_ceiling_beside_another_process() -> None:
    memory = DeviceMemory("gpu", 15 * GIB, GIB, GIB)
    ceiling = device.device_ceiling(memory, seen(4 * GIB, 2 * GIB, 9 * GIB))
    assert ceiling.bytes == 6 * GIB - CONTEXT_BYTES
    assert "others hold 9 GiB (rival 9 GiB)" in ceiling.source
    assert "4 GiB of 15 GiB of T4 free" in ceiling.source


def test_ceiling_is_never_below_what_is_held() -> None:
    memory = DeviceMemory("gpu", 15 * GIB, 3 * GIB, 3 * GIB)
    assert device.device_ceiling(memory, seen(0, 3 * GIB, 12 * GIB)).bytes == 3 * GIB


def test_ceiling_of_a_full_device_is_positive() -> None:
    assert device.device_ceiling(T4, seen(0, None, 15 * GIB)).bytes == 1


def test_others_are_named_with_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(gpu(**{"p1": 2 * GIB, "p999999999": 3 * GIB, f"p{os.getpid()}": GIB}))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    text = device.others_text(T4)
    assert text.startswith("Others hold 5 GiB of the Tesla T4: unknown (process 999999999) 3 GiB, ")
    assert "(process 1) 2 GiB" in text
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu(**{f"p{os.getpid()}": GIB})))
    assert device.others_text(T4) == ""
    assert device.others_text(None) == ""
