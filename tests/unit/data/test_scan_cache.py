from __future__ import annotations

import os
import pathlib

import pytest

from memfit.data import folder_scan, scan_cache
from memfit.data.folder_scan import FolderScan


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "kept"))
    for name in ("a/1.png", "a/deep/er/2.png", "b/\u00fc.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "images" / "b" / "empty").mkdir()
    settle(tmp_path / "images")
    return tmp_path / "images"


def settle(folder: pathlib.Path) -> None:
    """Makes every folder look as if it had not changed for long."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, ns=(10**18, 10**18))


class Scan:
    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.calls = 0

    def __call__(self) -> FolderScan:
        self.calls += 1
        return folder_scan.scan(str(self.folder))


def paths(found: FolderScan) -> list[str]:
    return [found.files.path(index) for index in range(len(found.files))]


def test_a_folder_that_has_not_changed_is_listed_once(folder: pathlib.Path) -> None:
    scan = Scan(folder)
    first = scan_cache.scanned(str(folder), "way", scan, least_files=3)
    again = scan_cache.scanned(str(folder), "way", scan, least_files=3)
    assert scan.calls == 1
    assert paths(first) == paths(again)
    assert again.files.labels.tolist() == [0, 0, 1]
    assert again.sizes.tolist() == [1, 1, 1]
    scan_cache.scanned(str(folder), "other way", scan, least_files=3)
    assert scan.calls == 2


@pytest.mark.parametrize("place", ["a/3.png", "a/deep/er/3.png", "a/deep/3.png", "b/empty/3.png", "c/3.png"])
def test_a_new_file_anywhere_is_seen(folder: pathlib.Path, place: str) -> None:
    scan = Scan(folder)
    scan_cache.scanned(str(folder), "way", scan, least_files=3)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(b"x")
    assert len(scan_cache.scanned(str(folder), "way", scan, least_files=3).files) == 4


def test_nothing_is_kept_of_small_folders_of_those_that_just_changed_and_of_those_with_empty_files(
    folder: pathlib.Path,
) -> None:
    scan = Scan(folder)
    for _ in range(2):
        scan_cache.scanned(str(folder), "way", scan, least_files=4)
    assert scan.calls == 2
    (folder / "a" / "3.png").write_bytes(b"x")
    for _ in range(2):
        scan_cache.scanned(str(folder), "way", scan, least_files=3)
    assert scan.calls == 4
    (folder / "a" / "3.png").write_bytes(b"")
    settle(folder)
    for _ in range(2):
        scan_cache.scanned(str(folder), "way", scan, least_files=3)
    assert scan.calls == 6


def test_a_damaged_file_is_none(folder: pathlib.Path) -> None:
    scan = Scan(folder)
    scan_cache.scanned(str(folder), "way", scan, least_files=3)
    (kept,) = (folder.parent / "kept" / "scans").iterdir()
    kept.write_bytes(b"nothing")
    assert len(scan_cache.scanned(str(folder), "way", scan, least_files=3).files) == 3
