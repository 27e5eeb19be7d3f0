"""Rows kept once: in an array, in a file that was asked for, in a file without a name; nothing is left after a failure."""

from __future__ import annotations

import doctest
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from memfit.errors import ArgumentError
from memfit.executing import results
from memfit.executing.results import Rows

DATA = np.random.default_rng(0).normal(size=(1000, 3, 5)).astype("float32")


def filled(rows: Rows, data: np.ndarray = DATA) -> np.ndarray:
    for start in range(0, len(data), 64):
        rows.append(data[start : start + 64])
    return rows.finish()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("num_rows", [1000, None])
@pytest.mark.parametrize(("limit", "mapped"), [(2**30, False), (20_000, True)])
def test_rows_without_a_name(num_rows: int | None, limit: int, mapped: bool, folder: Path) -> None:
    found = filled(Rows(None, num_rows=num_rows, limit_bytes=limit))
    assert isinstance(found, np.memmap) is mapped
    np.testing.assert_array_equal(found, DATA)
    found += 1  # as an array may be
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("num_rows", [1000, None])
def test_rows_in_a_file_are_what_numpy_reads(num_rows: int | None, folder: Path) -> None:
    path = folder / "rows.npy"
    found = filled(Rows(path, num_rows=num_rows, limit_bytes=0))
    np.testing.assert_array_equal(found, DATA)
    np.testing.assert_array_equal(np.load(path), DATA)
    assert not found.flags.writeable
    plain = folder / "plain.npy"
    np.save(plain, DATA)
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("dtype", ["float16", "bool", "int64", "<U3", "complex64"])
def test_other_dtypes(dtype: str, folder: Path) -> None:
    data = np.arange(70).astype(dtype)
    np.testing.assert_array_equal(filled(Rows(folder / "rows.npy", num_rows=None, limit_bytes=0), data), data)


def test_fewer_rows_than_were_announced() -> None:
    assert filled(Rows(None, num_rows=5000, limit_bytes=2**30)).shape == (1000, 3, 5)


def test_more_rows_than_were_announced() -> None:
    np.testing.assert_array_equal(filled(Rows(None, num_rows=10, limit_bytes=2**30)), DATA)


def test_no_rows_of_a_file(folder: Path) -> None:
    rows = Rows(folder / "rows.npy", num_rows=None, limit_bytes=0)
    rows.append(DATA[:0])
    assert rows.finish().shape == np.load(folder / "rows.npy").shape == (0, 3, 5)


def test_a_failure_leaves_the_file_that_was_there(folder: Path) -> None:
    path = folder / "rows.npy"
    path.write_bytes(b"before")
    rows = Rows(path, num_rows=None, limit_bytes=0)
    rows.append(DATA)
    rows.abandon()
    assert path.read_bytes() == b"before"
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("other", [DATA[:, :2], DATA.astype("float64")])
def test_rows_of_another_kind_are_refused(other: np.ndarray) -> None:
    rows = Rows(None, num_rows=None, limit_bytes=2**30)
    rows.append(DATA)
    with pytest.raises(ArgumentError, match="one shape and dtype"):
        rows.append(other)
    with pytest.raises(ArgumentError, match="first axis"):
        Rows(None, num_rows=None, limit_bytes=2**30).append(np.float32(1))


def test_growing_holds_the_rows_once() -> None:
    data = np.ones((64, 1024), "float64")
    tracemalloc.start()
    try:
        rows = Rows(None, num_rows=None, limit_bytes=2**40)
        for _ in range(256):
            rows.append(data)
        found = rows.finish()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * found.nbytes
    del held


def test_examples() -> None:
    assert doctest.testmod(results, extraglobs={"np": np}).failed == 0
