from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from memfit.guarding.watch import Watcher
from memfit.records import DeviceMemory

MIB = 1024**2
FAST = 0.002


class FakeBackend:
    def __init__(self, used: int, peak: int) -> None:
        self.used = used
        self.peak = peak

    def device_memory(self) -> DeviceMemory:
        return DeviceMemory("gpu", 10**9, self.used, self.peak)


def watchers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "memfit-watcher"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_block_that_comes_and_goes_is_in_the_peak() -> None:
    with Watcher(interval=FAST) as watcher:
        before = watcher.peak.host_bytes
        block = b"x" * (64 * MIB)
        wait_until(lambda: watcher.peak.host_bytes > before + 48 * MIB)
        del block
    assert watcher.peak.host_bytes > before + 48 * MIB
    assert watcher.peak.device_bytes is None
    assert "sampled every 2 ms" in watcher.peak.source


def test_what_is_held_at_the_end_is_in_the_peak_however_seldom_it_samples() -> None:
    with Watcher(interval=3600) as watcher:
        before = watcher.peak.host_bytes
        block = b"x" * (64 * MIB)
    assert watcher.peak.host_bytes > before + 48 * MIB
    del block


def test_peak_stays_after_the_end() -> None:
    with Watcher(interval=FAST) as watcher:
        pass
    peak = watcher.peak
    block = b"x" * (64 * MIB)
    time.sleep(5 * FAST)
    del block
    assert watcher.peak is peak


def test_no_thread_and_no_file_is_left() -> None:
    gc.collect()
    files = open_files()
    with Watcher(interval=FAST):
        assert watchers()
    assert not watchers()
    assert open_files() == files


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_no_thread_is_left_after_an_exception(error: type[BaseException]) -> None:
    with pytest.raises(error), Watcher(interval=FAST) as watcher:
        raise error
    assert not watchers()
    assert watcher.peak.host_bytes > 0


def test_stops_in_the_middle_of_a_long_interval() -> None:
    with Watcher(interval=3600):
        pass
    assert not watchers()


def test_can_be_used_again_but_not_twice_at_once() -> None:
    watcher = Watcher(interval=FAST)
    for _ in range(3):
        with watcher:
            assert len(watchers()) == 1
            with pytest.raises(RuntimeError, match="one block at a time"):
                watcher.__enter__()
            assert len(watchers()) == 1
        assert not watchers()


def test_device_peak_that_rose_during_the_watch_is_the_allocators() -> None:
    backend: Any = FakeBackend(used=100, peak=400)
    with Watcher(backend, interval=3600) as watcher:
        backend.peak = 900
        backend.used = 200
    assert watcher.peak.device_bytes == 900


def test_device_peak_from_before_the_watch_does_not_count() -> None:
    backend: Any = FakeBackend(used=100, peak=400)
    with Watcher(backend, interval=FAST) as watcher:
        backend.used = 300
        wait_until(lambda: watcher.peak.device_bytes == 300)
        backend.used = 50
    assert watcher.peak.device_bytes == 300


def test_backend_that_fails_at_the_end_leaves_no_thread() -> None:
    class Failing(FakeBackend):
        def device_memory(self) -> DeviceMemory:
            if self.peak < 0:
                raise RuntimeError("device lost")
            return super().device_memory()

    gc.collect()
    files = open_files()
    backend: Any = Failing(1, 1)
    with pytest.raises(RuntimeError, match="device lost"), Watcher(backend, interval=3600):
        backend.peak = -1
    assert not watchers()
    assert open_files() == files


def test_memory_of_the_watcher_does_not_grow() -> None:
    tracemalloc.start()
    try:
        with Watcher(interval=0.0005):
            time.sleep(0.1)
            before, _ = tracemalloc.get_traced_memory()
            time.sleep(0.3)
            after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
