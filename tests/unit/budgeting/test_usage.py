from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from memfit.budgeting import usage
from memfit.records import DeviceMemory

if TYPE_CHECKING:
    from conftest import Machine

MIB = 1024**2
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class FakeBackend:
    def __init__(self, memory: DeviceMemory | None) -> None:
        self.memory = memory

    def device_memory(self) -> DeviceMemory | None:
        return self.memory


def test_anonymous_bytes_leaves_files_out() -> None:
    status = b"VmRSS:\t30 kB\nRssAnon:\t  10 kB\nRssFile:\t 15 kB\nRssShmem:\t 5 kB\n"
    assert usage.anonymous_bytes(status) == 15 * 1024


def test_anonymous_bytes_of_a_status_without_them_is_unknown() -> None:
    assert usage.anonymous_bytes(b"Name:\tRssAnon: 3 kB\nVmRSS:\t30 kB\n") is None


def test_reading_of_a_fake_machine(machine: Machine) -> None:
    machine.holds(anonymous=300 * MIB, shared=20 * MIB)
    reading = usage.reading(root=machine.root)
    assert (reading.host_bytes, reading.device_bytes) == (320 * MIB, None)
    assert "RssAnon" in reading.source


@pytest.mark.parametrize("status", [None, "Name:\tpython\nVmRSS:\t30 kB\n", ""])
def test_reading_falls_back_to_psutil(tmp_path: Path, status: str | None) -> None:
    if status is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/status").write_text(status)
    reading = usage.reading(root=tmp_path)
    assert reading.host_bytes > MIB
    assert "psutil" in reading.source


def test_psutil_fallback_takes_private_bytes_where_the_system_counts_them() -> None:
    def process(**memory: int) -> Any:
        return SimpleNamespace(memory_info=lambda: SimpleNamespace(**memory))

    assert usage._psutil_bytes(process(rss=100, private=70)) == 70
    assert usage._psutil_bytes(process(rss=100, shared=40)) == 60
    assert usage._psutil_bytes(process(rss=100)) == 100


def test_reading_with_a_device(machine: Machine) -> None:
    backend: Any = FakeBackend(DeviceMemory("gpu", 1000, 300, 500))
    assert usage.reading(backend, root=machine.root).device_bytes == 300
    backend = FakeBackend(None)
    assert usage.reading(backend, root=machine.root).device_bytes is None


@on_linux
def test_memory_that_is_touched_is_counted_and_file_pages_are_not(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    file.write_bytes(b"x" * (64 * MIB))
    with usage.Gauge() as gauge:
        before = gauge.read()
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            assert sum(pages[offset] for offset in range(0, len(pages), 4096)) > 0
            assert gauge.read() - before < 16 * MIB
        block = b"y" * (64 * MIB)
        assert 48 * MIB < gauge.read() - before < 80 * MIB
        del block


@on_linux
def test_gauge_of_another_process_that_ends() -> None:
    with subprocess.Popen(["sleep", "60"]) as process, usage.Gauge(process.pid) as gauge:
        assert gauge.read() > 0
        process.kill()
        process.wait()
        assert gauge.read() == 0


def test_peak_resident_bytes(machine: Machine, tmp_path: Path) -> None:
    assert usage.peak_resident_bytes(root=machine.root) == 3 * 1024**3
    assert usage.peak_resident_bytes(root=tmp_path / "nothing") > MIB


@on_linux
def test_reset_of_the_peak() -> None:
    usage.reset_peak_resident()
    before = usage.peak_resident_bytes()
    block = b"x" * (200 * MIB)
    highest = usage.peak_resident_bytes()
    assert highest > before + 150 * MIB
    del block
    if usage.reset_peak_resident():
        assert usage.peak_resident_bytes() < highest - 150 * MIB


def test_reset_where_the_system_cannot(tmp_path: Path) -> None:
    assert usage.reset_peak_resident(root=tmp_path) is False
