from __future__ import annotations

import errno
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memfit.errors import SnapshotError
from memfit.guarding import snapshot
from memfit.guarding.snapshot import Position, Snapshot, Store


def at(epoch: int, step: int = 0) -> Snapshot:
    return Snapshot(
        position=Position(epoch, step),
        call={"batch_size": 4},
        variables=[np.full((2, 3), float(epoch), "float32")],
        specs=[["kernel", [2, 3]]],
        random={"now": (1, 2)},
        callbacks=[("History", {"epoch": [0, 1]})],
        data=None,
        logs={"loss": 0.5},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "made" / "for it")
    assert store.latest() is None
    store.add(at(1, 7))
    found = store.latest()
    assert found is not None
    assert (found.position, found.callbacks, found.random) == (
        Position(1, 7),
        [("History", {"epoch": [0, 1]})],
        {"now": (1, 2)},
    )
    assert np.array_equal(found.variables[0], at(1).variables[0])


def test_the_last_two_are_kept_and_the_folder_is_removed_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    store = Store(folder)
    with store.held():
        for epoch in range(4):
            store.add(at(epoch))
        assert names(folder) == [".in-use", "snapshot-00000002.npz", "snapshot-00000003.npz"]
        store.clear()
    assert not folder.exists()


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    store = Store(tmp_path)
    with store.held():
        store.add(at(0))
        store.clear()
    assert names(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("failing", ["savez", "fsync", "replace"])
def test_a_full_disk_leaves_the_one_before_and_nothing_half_written(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.add(at(0))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = np if failing == "savez" else snapshot.os
    monkeypatch.setattr(owner, failing, full)
    with pytest.raises(OSError, match="No space left"):
        store.add(at(1))
    monkeypatch.undo()
    assert names(tmp_path) == ["snapshot-00000000.npz"]
    found = store.latest()
    assert found is not None
    assert found.position == Position(0, 0)


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(at(0))
    (tmp_path / "snapshot-00000001.npz.partial").write_bytes(b"PK")
    with store.held():
        assert "snapshot-00000001.npz.partial" not in names(tmp_path)


def test_a_broken_file_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(at(0))
    store.add(at(1)).write_bytes(b"torn")
    found = store.latest()
    assert found is not None
    assert found.position.epoch == 0


def test_only_broken_files_are_an_error_that_names_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.add(at(0))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SnapshotError, match=r"cannot be read .*Received: .*snapshot-00000000\.npz"):
        store.latest()


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(snapshot, "VERSION", 2)
    store.add(at(0))
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="format 2 by another version of memfit"):
        store.latest()


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run from a file",)


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    np.savez(file, record=np.array([Evil()], object))
    for content in (file.getvalue(), pickle.dumps(Evil())):
        (tmp_path / "snapshot-00000000.npz").write_bytes(content)
        with pytest.raises(SnapshotError):
            Store(tmp_path).latest()
    assert capsys.readouterr().out == ""


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "one").held(),
        pytest.raises(SnapshotError, match="Another run keeps its snapshots"),
        Store(tmp_path / "one").held(),
    ):
        pass
    with Store(tmp_path / "one").held():
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match="cannot be used"):
        Store(tmp_path / "file")
