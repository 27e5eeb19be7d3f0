from __future__ import annotations

import pathlib
import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from memfit.data import offsets, text_files
from memfit.data.offsets import RecordFiles


def test_an_index_of_many_records_lies_on_disk_and_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(offsets, "_IN_MEMORY", 10)
    monkeypatch.setattr(offsets, "_BUFFERED", 7)
    file = tmp_path / "a.txt"
    file.touch()
    spans = [(0, 3 * number, number) for number in range(40)]
    small = offsets.indexed([str(file)], spans[:9], "few")
    assert (len(small), small.held_bytes) == (9, 9 * 16)
    large = offsets.indexed([str(file)], spans, "many")
    assert (len(large), large.held_bytes) == (40, 0)
    assert large.records.tolist() == [(0, number, 3 * number) for number in range(40)]

    def never() -> Iterator[tuple[int, int, int]]:
        raise AssertionError("read again")
        yield

    again = offsets.indexed([str(file)], never(), "many")
    assert again.records.tolist() == large.records.tolist()
    assert pickle.loads(pickle.dumps(again)).records[5].tolist() == (0, 5, 15)


def test_an_index_that_is_not_finished_is_not_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(offsets, "_IN_MEMORY", 2)

    def broken() -> Iterator[tuple[int, int, int]]:
        yield from [(0, 1, 1)] * 5
        raise ValueError("a bad file")

    with pytest.raises(ValueError, match="a bad file"):
        offsets.indexed([__file__], broken(), "broken")
    assert list((tmp_path / "indices").iterdir()) == []


@pytest.mark.parametrize("most_open", [1, 64])
def test_pieces_of_files(tmp_path: pathlib.Path, most_open: int) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10 + b"end")
    files = RecordFiles([str(path) for path in paths], most_open=most_open)
    assert [files.read(1, 8, 4), files.read(0, 0, 2), files.read(1, 12, 9)] == [b"bben", b"aa", b"d"]
    assert pickle.loads(pickle.dumps(files)).read(0, 9, 2) == b"ae"


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_lines_are_what_python_reads_whatever_the_blocks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, block: int, end: str
) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", block)
    path = tmp_path / "a.txt"
    path.write_bytes(("one\n\r\ntwo\r\n\nthr\u00e9e\nf" + end).encode())
    texts = text_files.lines([str(path), str(path)], "utf-8")
    assert [texts[number] for number in range(len(texts))] == ["one", "two", "thr\u00e9e", "f"] * 2
    assert np.diff(texts._index.records["file"]).sum() == 1
