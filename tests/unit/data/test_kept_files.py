from __future__ import annotations

import os
import pathlib

import pytest

from memfit import errors
from memfit.data import disk, file_lists, kept_files


def test_a_file_appears_when_it_is_complete_and_a_failure_leaves_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "a-1.npy"
    with kept_files.draft(path) as draft:
        draft.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(KeyError), kept_files.draft(tmp_path / "new" / "b-1.npy"):
        raise KeyError
    assert [found.name for found in path.parent.iterdir()] == ["a-1.npy"]


def test_names_follow_the_files_and_the_way_of_reading(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("a")
    first = kept_files.names([str(file)], "rows")
    assert kept_files.names([str(file)], "rows") == first
    assert kept_files.names([str(file)], "lines") != first
    file.write_text("ab")
    changed = kept_files.names([str(file)], "rows")
    assert changed[0] == first[0]
    assert changed[1] != first[1]


def test_what_was_made_of_an_earlier_state_is_removed(tmp_path: pathlib.Path) -> None:
    for name in ("x-1.npy", "x-1.json", "x-2.npy", "x-2.json", "y-1.npy"):
        (tmp_path / name).touch()
    kept_files.remove_others(tmp_path / "x-2.npy", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-2.json", "x-2.npy", "y-1.npy"]


def test_a_full_disk_and_a_folder_that_is_none_are_errors(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.MemfitError, match=r"About .* TiB are to be written .* are free. Delete."):
        kept_files.check_room(tmp_path / "new", 10**18, cure="Delete.")
    (tmp_path / "file").touch()
    with (
        pytest.raises(errors.MemfitError, match=r"cannot be written: .*`cache_dir`"),
        kept_files.draft(tmp_path / "file" / "a.npy"),
    ):
        pass


def test_where_files_are_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_files.folder("rows", tmp_path) == tmp_path
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    assert kept_files.folder("rows") == tmp_path / "rows"
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "")
    throwaway = kept_files.folder("rows")
    assert throwaway == kept_files.folder("rows")
    assert "memfit-" in throwaway.parent.name
    assert disk.roomy_folder(1)[0] == throwaway.parent
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(disk, "_file_system", lambda path: "tmpfs")
    assert kept_files.folder("rows") == tmp_path / "rows", "rather in memory than nowhere"


def test_the_files_that_a_user_means(tmp_path: pathlib.Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt", ".d.csv", "in/e.CSV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def listed(files: object) -> list[str]:
        return [os.path.relpath(path, tmp_path) for path in file_lists.listed(files, suffixes=(".csv",))]

    assert listed(tmp_path) == ["a.csv", "b.csv", os.path.join("in", "e.CSV")]
    assert listed(str(tmp_path / "*.csv")) == ["a.csv", "b.csv"]
    assert listed([tmp_path / "c.txt", tmp_path / "a.csv", tmp_path / "c.txt"]) == ["c.txt", "a.csv"]
    with pytest.raises(errors.ArgumentError, match=r"`files`: there is no such file at .*no\.csv"):
        listed(tmp_path / "no.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ArgumentError, match=r"no files that end in \.csv"):
        listed(tmp_path / "empty")
    with pytest.raises(errors.ArgumentError, match="Received: files=3"):
        listed(3)
