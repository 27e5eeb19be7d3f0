"""What of a file comes into memory when its rows are read in any order, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
import pytest

from memfit.data import columns, mapped_rows
from memfit.data.image_cache import DiskCache
from memfit.data.row_file import RowFile, RowWriter

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="a system that cannot be told to forget pages")

NUM_ROWS, ROW = 4096, 8192  # 32 MiB.
CHOSEN = np.random.default_rng(0).permutation(NUM_ROWS)[:32].astype(np.int32)


def resident_pages(path: pathlib.Path) -> int:
    """Pages of a file that are in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        num_pages = -(-len(mapped) // mmap.PAGESIZE)
        there = (ctypes.c_ubyte * num_pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), len(mapped), there) == 0
        gc.collect()
        return sum(page & 1 for page in there)


def forgotten(path: pathlib.Path) -> None:
    """Written out and dropped from memory; the test is skipped where the file lies in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_pages(path):
        pytest.skip("the folder for temporary files lies in memory")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_rows.host, "free_bytes", lambda: 2**20)


def array(folder: pathlib.Path) -> np.ndarray:
    data = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.uint8, shape=(NUM_ROWS, ROW))
    data[:] = (np.arange(NUM_ROWS) % 251)[:, None]
    data.flush()
    del data
    forgotten(folder / "x.npy")
    return np.load(folder / "x.npy", mmap_mode="r")


def of_array(folder: pathlib.Path) -> tuple[pathlib.Path, Callable[[], np.ndarray]]:
    column = columns.column("x", array(folder))
    column.read_in_any_order()
    out = np.empty((len(CHOSEN), ROW), np.uint8)

    def read() -> np.ndarray:
        column.gather(CHOSEN, out)
        return out

    return folder / "x.npy", read


def of_row_file(folder: pathlib.Path) -> tuple[pathlib.Path, Callable[[], np.ndarray]]:
    with open(folder / "rows.npy", "wb") as file:
        writer = RowWriter(file, np.dtype([("numbers", "u1", (ROW,))]))
        rows = np.zeros(NUM_ROWS, [("numbers", "u1", (ROW,))])
        rows["numbers"] = (np.arange(NUM_ROWS) % 251)[:, None]
        writer.append(rows)
        writer.finish()
    forgotten(folder / "rows.npy")
    file_of_rows = RowFile(folder / "rows.npy")

    def read() -> np.ndarray:
        file_of_rows.ask(CHOSEN)
        return file_of_rows.rows["numbers"][CHOSEN]

    return folder / "rows.npy", read


def of_cache(folder: pathlib.Path) -> tuple[pathlib.Path, Callable[[], np.ndarray]]:
    shape = (NUM_ROWS, 64, 128, 1)
    cache = DiskCache(folder / "images-a", shape, about={})
    for sample in range(NUM_ROWS):
        cache.pixels(sample, lambda: np.full(shape[1:], sample % 251, np.uint8))  # noqa: B023
    del cache
    gc.collect()
    path = folder / "images-a" / "pixels.npy"
    forgotten(path)
    kept = DiskCache(folder / "images-a", shape, about={})

    def fail() -> np.ndarray:
        raise AssertionError("not decoded again")

    return path, lambda: np.stack([kept.pixels(int(sample), fail).reshape(-1) for sample in CHOSEN])


@pytest.mark.parametrize("made", [of_array, of_row_file, of_cache])
@pytest.mark.usefixtures("little_memory")
def test_of_a_file_that_memory_does_not_hold_only_the_rows_are_read(
    tmp_path: pathlib.Path, made: Callable[[pathlib.Path], tuple[pathlib.Path, Callable[[], np.ndarray]]]
) -> None:
    path, read = made(tmp_path)
    np.testing.assert_array_equal(read(), np.repeat((CHOSEN % 251)[:, None], ROW, axis=1))
    # A row lies in three pages; the header in one.
    assert len(CHOSEN) * 2 <= resident_pages(path) <= len(CHOSEN) * 3 + 8


@pytest.mark.usefixtures("little_memory")
def test_rows_that_are_asked_for_come_while_others_are_read(tmp_path: pathlib.Path) -> None:
    rows = mapped_rows.of(array(tmp_path))
    assert rows is not None
    rows.ask(CHOSEN)
    end = time.monotonic() + 60
    while resident_pages(tmp_path / "x.npy") < 2 * len(CHOSEN):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("little_memory")
def test_rows_that_are_there_are_not_asked_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, asked = [0], []
    monkeypatch.setattr(mapped_rows, "_major_faults", lambda: faults[0])
    rows = mapped_rows.of(array(tmp_path))
    assert rows is not None
    monkeypatch.setattr(rows, "_request", lambda indices: asked.append(len(indices)))
    for _ in range(200):
        rows.ask(CHOSEN)
    assert len(asked) == mapped_rows._ASKED
    faults[0] += len(CHOSEN)
    rows.ask(CHOSEN)
    assert len(asked) == mapped_rows._ASKED + 1


@pytest.mark.usefixtures("little_memory")
def test_a_users_mapping_is_as_it_was_when_the_data_set_is_gone(tmp_path: pathlib.Path) -> None:
    data = array(tmp_path)
    first, second = mapped_rows.of(data), mapped_rows.of(data[10:])
    assert first is not None
    assert second is not None
    del first
    np.asarray(data[CHOSEN[0]]).sum()
    assert resident_pages(tmp_path / "x.npy") <= 8  # The second still reads in any order.
    del second
    np.asarray(data[CHOSEN[1]]).sum()
    assert resident_pages(tmp_path / "x.npy") >= 16


@pytest.mark.parametrize("view", [lambda x: x[:, ::-1], lambda x: x[::-1], lambda x: x.T, lambda x: x[:0], np.array])
@pytest.mark.usefixtures("little_memory")
def test_rows_that_do_not_lie_behind_each_other_are_left_to_the_system(
    tmp_path: pathlib.Path, view: Callable[[np.ndarray], np.ndarray]
) -> None:
    np.save(tmp_path / "x.npy", np.ones((1024, 1024), np.float32))
    assert mapped_rows.of(view(np.load(tmp_path / "x.npy", mmap_mode="r"))) is None


def test_a_file_that_memory_holds_is_left_to_the_system(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((16, 16)))
    assert mapped_rows.of(np.load(tmp_path / "x.npy", mmap_mode="r")) is None
