from __future__ import annotations

import os
import pathlib

import pytest

from memfit import errors
from memfit.data import folder_scan
from memfit.data.progress import stderr_progress


def fill(folder: pathlib.Path, *paths: str, content: bytes = b"not looked at") -> pathlib.Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def paths(found: folder_scan.FolderScan) -> list[str]:
    directory = found.files.directory
    return [os.path.relpath(found.files.path(i), directory).replace(os.sep, "/") for i in range(len(found.files))]


def test_labels_are_the_places_of_sorted_folders_and_files_are_sorted(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "dogs/b.jpg", "dogs/a.PNG", "cats/2.webp", "cats/deep/1.gif", "cats/10.bmp", "ants/x.jpeg")
    found = folder_scan.scan(str(tmp_path))
    assert found.files.folders == ("ants", "cats", "dogs")
    assert paths(found) == [
        "ants/x.jpeg", "cats/10.bmp", "cats/2.webp", "cats/deep/1.gif", "dogs/a.PNG", "dogs/b.jpg",
    ]  # fmt: skip
    assert found.files.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert found.sizes.tolist() == [13] * 6
    assert found.skipped == ()


def test_hidden_files_and_other_files_are_left_out(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "cats/1.jpg", "cats/._1.jpg", "cats/notes.txt", ".git/x.jpg", "cats/.cache/2.jpg", "top.jpg")
    assert paths(folder_scan.scan(str(tmp_path))) == ["cats/1.jpg"]


def test_empty_files_and_links_to_nothing_are_set_aside_with_reasons(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "cats/1.jpg")
    fill(tmp_path, "cats/0.jpg", content=b"")
    (tmp_path / "cats" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = folder_scan.scan(str(tmp_path))
    assert paths(found) == ["cats/1.jpg"]
    assert {os.path.basename(file.path): file.reason for file in found.skipped} == {
        "0.jpg": "the file is empty",
        "gone.jpg": "No such file or directory",
    }


def test_class_names_choose_and_order_the_folders(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    found = folder_scan.scan(str(tmp_path), class_names=["c", "a"])
    assert paths(found) == ["c/3.jpg", "a/1.jpg"]
    assert found.files.labels.tolist() == [0, 1]


@pytest.mark.parametrize("class_names", [["a", "zebra"], [], ["a", "a"], "a"])
def test_class_names_that_do_not_exist_are_an_error(tmp_path: pathlib.Path, class_names: list[str]) -> None:
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    with pytest.raises(errors.ArgumentError, match=r"`class_names` must .*\['a', 'b'\].* Received: class_names="):
        folder_scan.scan(str(tmp_path), class_names=class_names)


def test_linked_folders_are_followed_only_when_asked_and_circles_end(tmp_path: pathlib.Path) -> None:
    fill(tmp_path / "elsewhere", "2.jpg")
    fill(tmp_path / "images", "cats/1.jpg")
    (tmp_path / "images" / "cats" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "cats" / "circle").symlink_to(tmp_path / "images" / "cats")
    (tmp_path / "images" / "dogs").symlink_to(tmp_path / "elsewhere")
    directory = str(tmp_path / "images")
    assert paths(folder_scan.scan(directory)) == ["cats/1.jpg", "dogs/2.jpg"]
    assert paths(folder_scan.scan(directory, follow_links=True)) == ["cats/1.jpg", "cats/linked/2.jpg", "dogs/2.jpg"]


def test_a_missing_directory_is_an_error_that_says_where_it_looked(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.ArgumentError, match=r"does not exist.*nowhere.*working directory"):
        folder_scan.scan(str(tmp_path / "nowhere"))


def test_a_file_is_not_a_directory(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "file.jpg")
    with pytest.raises(errors.ArgumentError, match=r"must be a folder.*a file"):
        folder_scan.scan(str(tmp_path / "file.jpg"))


def test_no_class_folders(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "1.jpg")
    with pytest.raises(errors.ArgumentError, match=r"one sub-folder a class.*label_mode=None"):
        folder_scan.scan(str(tmp_path))
    assert paths(folder_scan.scan(str(tmp_path), without_classes=True)) == ["1.jpg"]


def test_no_images_says_what_was_there_instead(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "cats/1.heic", "cats/2.heic", "cats/3.tif")
    with pytest.raises(errors.ArgumentError, match=r"No images.*2 x \.heic, 1 x \.tif.*must end in one of: \.bmp"):
        folder_scan.scan(str(tmp_path))


def test_only_empty_images(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "cats/1.jpg", content=b"")
    with pytest.raises(errors.ArgumentError, match=r"1 image files cannot be used, first .*1\.jpg"):
        folder_scan.scan(str(tmp_path))


def test_a_slow_scan_says_what_it_does_and_a_quick_one_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    report = stderr_progress("listing the images in pets", "files", clock=lambda: now[0])
    for num_files in range(1, 61):
        now[0] += 0.125
        report(num_files * 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "memfit: listing the images in pets: 17,000 files so far"


def test_scanning_reports_every_file(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.txt")
    seen: list[int] = []
    folder_scan.scan(str(tmp_path), report=seen.append)
    assert seen == [1, 2, 3]
