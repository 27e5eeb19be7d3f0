"""Caches of decoded images: which is chosen, that one on disk is whole or not there, and when it is used again."""

from __future__ import annotations

import doctest
import functools
import os
import pathlib
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memfit import errors
from memfit.data import image_cache
from memfit.data.file_table import FileTable
from memfit.data.image_cache import DiskCache, MemoryCache
from memfit.data.image_decoding import ImageReader
from memfit.data.image_options import ImageOptions

SHAPE = (5, 2, 3, 1)


def pixels(sample: int) -> np.ndarray:
    return np.full(SHAPE[1:], sample, np.uint8)


def never() -> np.ndarray:
    raise AssertionError("decoded again")


def disk_with(free: int) -> Any:
    return lambda size: (pathlib.Path("/disk"), "it has room") if size <= free else (None, "the disk is full")


def test_examples() -> None:
    results = doctest.testmod(image_cache)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("wanted", "room", "free", "kind"),
    [
        (None, 999, 999, None),
        ("auto", 100, 999, "memory"),
        ("auto", 99, 999, "disk"),
        ("auto", 99, 99, None),
        ("memory", 100, 0, "memory"),
        ("disk", 999, 100, "disk"),
    ],
)
def test_which_cache_is_chosen(wanted: str | None, room: int, free: int, kind: str | None) -> None:
    choice = image_cache.choose(wanted, 100, room=room, disk_for=disk_with(free))
    assert choice.kind == kind
    assert choice.reason


@pytest.mark.parametrize("wanted", ["memory", "disk"])
def test_a_cache_asked_for_by_name_that_has_no_room_is_an_error(wanted: str) -> None:
    with pytest.raises(errors.ArgumentError, match="no room for the cache"):
        image_cache.choose(wanted, 100, room=99, disk_for=disk_with(99))


def test_a_cache_decodes_each_sample_once(tmp_path: pathlib.Path) -> None:
    for cache in (MemoryCache(SHAPE), DiskCache(tmp_path / "images-a", SHAPE, about={})):
        for sample in range(5):
            assert np.array_equal(cache.pixels(sample, lambda sample=sample: pixels(sample)), pixels(sample))
        for sample in range(5):
            assert np.array_equal(cache.pixels(sample, never), pixels(sample))


def test_what_a_cache_holds_and_will_hold_add_up_and_a_copy_begins_empty(tmp_path: pathlib.Path) -> None:
    cache = MemoryCache(SHAPE)
    full = cache.held_bytes + cache.growing_bytes
    assert not cache.is_begun
    cache.pixels(2, lambda: pixels(2))
    assert cache.is_begun
    assert cache.held_bytes == 6 + 5
    assert cache.held_bytes + cache.growing_bytes == full == 5 * 6 + 5
    assert not pickle.loads(pickle.dumps(cache)).is_begun
    on_disk = DiskCache(tmp_path / "images-a", SHAPE, about={})
    assert not on_disk.is_begun
    on_disk.pixels(2, lambda: pixels(2))
    assert on_disk.is_begun


def test_one_on_disk_is_used_again_when_it_is_whole_and_only_then(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "images-a"
    first = DiskCache(folder, SHAPE, about={"color_mode": "rgb"})
    for sample in range(4):
        first.pixels(sample, lambda sample=sample: pixels(sample))
    assert not folder.exists()
    assert not DiskCache(folder, SHAPE, about={}).reused
    first.pixels(4, lambda: pixels(4))
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "pixels.npy"]
    assert np.load(folder / "pixels.npy")[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    again = pickle.loads(pickle.dumps(DiskCache(folder, SHAPE, about={})))
    assert again.reused
    assert again.held_bytes == 0
    assert np.array_equal(again.pixels(3, never), pixels(3))
    # An index that says otherwise, or no index: not this cache.
    assert not DiskCache(folder, (6, 2, 3, 1), about={}).reused
    (folder / "index.json").write_text("{")
    assert not DiskCache(folder, SHAPE, about={}).reused


def test_a_damaged_cache_is_replaced(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "images-a"
    folder.mkdir()
    (folder / "index.json").write_text("{")
    cache = DiskCache(folder, SHAPE, about={})
    for sample in range(5):
        cache.pixels(sample, lambda sample=sample: pixels(sample))
    assert DiskCache(folder, SHAPE, about={}).reused


def test_a_disk_that_turns_out_to_be_full_means_no_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    files = FileTable(str(tmp_path), ("",), ["a.png"], [0])
    reader = ImageReader(ImageOptions(image_size=(4, 4)))
    cache, reason = image_cache.made(image_cache.chosen("disk", files, reader, room=0), files, reader)
    assert cache is None
    assert "No space left" in reason


def test_what_dead_processes_left_is_removed_and_what_living_ones_make_is_not(tmp_path: pathlib.Path) -> None:
    dead, living = tmp_path / "images-a.part-999999999-x", tmp_path / f"images-a.part-{os.getppid()}-x"
    dead.mkdir()
    living.mkdir()
    cache = DiskCache(tmp_path / "images-b", SHAPE, about={})
    assert not dead.exists()
    assert living.exists()
    del cache
    assert list(tmp_path.iterdir()) == [living]


def test_the_name_of_a_cache_changes_with_files_and_options(tmp_path: pathlib.Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    files = FileTable(str(tmp_path), ("",), [f"{number}.png" for number in range(3)], [0] * 3)

    def name(**options: Any) -> str:
        return image_cache.fingerprint(files, ImageReader(ImageOptions(image_size=(4, 4), **options)))

    first = name()
    assert name(shuffle=False, seed=9, rescale=0.5) == first
    assert name(color_mode="grayscale") != first
    assert image_cache.fingerprint(files.take(np.array([0, 1])), ImageReader(ImageOptions(image_size=(4, 4)))) != first
    os.utime(tmp_path / "1.png", (1, 1))
    assert name() != first


def test_a_cache_in_memory_gives_back_what_is_wanted_and_makes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_BLOCK_BYTES", 2 * 6)  # two samples
    cache = MemoryCache(SHAPE)
    for sample in range(5):
        cache.pixels(sample, functools.partial(pixels, sample))
    assert cache.held_bytes == 5 * 6 + 5
    held = cache.pixels(4, never)
    assert cache.give_back(7) == 6 + 12  # the last sample stands alone in its block
    assert held.tolist() == pixels(4).tolist()
    assert cache.held_bytes == 2 * 6 + 5
    assert cache.growing_bytes == 0
    assert cache.pixels(1, never).tolist() == pixels(1).tolist()
    for _ in range(2):  # and is not kept
        assert cache.pixels(3, lambda: pixels(3)).tolist() == pixels(3).tolist()
    with pytest.raises(AssertionError, match="decoded again"):
        cache.pixels(3, never)
    assert cache.give_back(10**9) == 2 * 6
    assert not cache.is_begun
    cache.fill_again()
    cache.pixels(3, lambda: pixels(3))
    assert cache.pixels(3, never).tolist() == pixels(3).tolist()


def test_a_cache_gives_back_while_others_read_and_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_BLOCK_BYTES", 2 * 6)
    cache = MemoryCache((64, *SHAPE[1:]))
    wrong: list[int] = []

    def read() -> None:
        for turn in range(2000):
            sample = (7 * turn) % 64
            if (cache.pixels(sample, functools.partial(pixels, sample)) != sample).any():
                wrong.append(sample)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        cache.give_back(12)
        time.sleep(0.001)
    assert wrong == []
