"""``memfit.data.table`` up to the point where it needs Keras: columns, schemas, missing values, vocabularies."""

from __future__ import annotations

import gzip
import mmap
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest

from memfit import data, errors
from memfit.data import mapped_rows, row_file, table_files, table_rows
from memfit.data.table_rows import Layout, Vocabularies

arrow = pytest.importorskip("pyarrow")

ROWS = {"age": [1, 2, 3], "city": ["Ulm", "Bonn", "Ulm"], "price": [0.5, 1.5, 2.5], "day": ["a", "b", "c"]}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path


def write(folder: pathlib.Path, **files: str) -> pathlib.Path:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "cost"}, r"`label`: the table has no column 'cost'. It has: \['age', 'city', 'price', 'day'\]"),
        ({"features": ["age", "x"]}, "`features`: the table has no column 'x'"),
        ({"sample_weight": "w"}, "`sample_weight`: the table has no column 'w'"),
        ({"label": ["age", "city"]}, "Several labels make a vector of numbers"),
        ({"label": "city", "label_kind": "words"}, "`label_kind` must be one of"),
        ({"label": "city", "class_names": ["Ulm"]}, "holds 'Bonn', which is not among the classes"),
        ({"label": "price", "label_kind": "integer"}, "goes on with 0.5, which does not fit"),
        ({"features": []}, "`features` must name a column"),
        ({"max_categories": 2}, "Column 'day' has more than 2 different texts, such as 'a'"),
        ({"label": "city", "validation_split": 0.5}, "belong together"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        data.table(ROWS, **options)


def test_a_single_class_is_an_error_and_so_is_a_label_that_is_missing() -> None:
    with pytest.raises(errors.ArgumentError, match=r"'city' holds a single class: \['Ulm'\]"):
        data.table({"age": [1, 2], "city": ["Ulm", "Ulm"]}, label="city")
    for values in (["Ulm", None], [1, None], [0.5, None]):
        with pytest.raises(errors.ArgumentError, match=r"missing: 1 in 'y' .*Remove the rows without y"):
            data.table({"age": [1, 2], "y": values}, label="y", class_names=["Ulm"])


def test_missing_numbers_are_an_error_that_counts_them() -> None:
    with pytest.raises(errors.ArgumentError, match=r"missing: 2 in 'age' \(first in the frame\). Pass `missing`"):
        data.table({"age": [1, None, None], "size": [1.0, 2.0, 3.0]}, label="size")


def test_columns_that_change_between_files_are_an_error(folder: pathlib.Path) -> None:
    write(folder, a="x,y\n1,2\n", b="x,z\n1,2\n")
    with pytest.raises(errors.ArgumentError, match=r"'y' is missing from .*b\.csv, which has \['x', 'z'\]"):
        data.table(folder, label="y", features=["x"])
    write(folder, b="x,y\nwarm,2\n")
    with pytest.raises(
        errors.ArgumentError, match=r"'x' holds a integer in .*a\.csv and a text in .*b\.csv.*`categories`"
    ):
        data.table(folder, label="y")


def test_what_columns_hold_is_told_by_the_first_block_alone(folder: pathlib.Path) -> None:
    """Also where it ends inside a text with line breaks, and nothing is read ahead behind it."""
    row = '1,2.5,"' + "several\nlines, " * 40 + '"\n'
    num_rows = 8 * 2**20 // len(row)
    path = write(folder, a="n,x,words\n" + row * num_rows) / "a.csv"
    arrow.default_memory_pool().release_unused()
    before = arrow.total_allocated_bytes()
    opened = table_files.opened(path, None)
    assert opened.kinds == {"n": "integer", "x": "number", "words": "text"}
    assert arrow.total_allocated_bytes() - before < 2 * 2**20
    assert sum(len(batch) for _, batch in opened.batches(["n"], [])) == num_rows


def test_compressed_and_unended_files(folder: pathlib.Path) -> None:
    write(folder, a="n,x\n1,2.5")
    with gzip.open(folder / "b.csv.gz", "wt") as file:
        file.write("n,x\n" + "1,2\n" * 2**19)
    opened = table_files.opened(folder, None)
    assert opened.kinds == {"n": "integer", "x": "number"}
    assert sum(len(batch) for _, batch in opened.batches(["n", "x"], [])) == 1 + 2**19


@pytest.mark.skipif(not hasattr(mmap.mmap, "madvise"), reason="a system without madvise")
@pytest.mark.parametrize(("free", "advised"), [(10**6, False), (1000, True)])
def test_rows_that_memory_does_not_hold_are_read_without_what_is_around_them(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, free: int, advised: bool
) -> None:
    said: list[int] = []

    class Map(mmap.mmap):
        def madvise(self, option: int, *where: int) -> None:
            said.append(option)
            super().madvise(option, *where)

    monkeypatch.setattr(mmap, "mmap", Map)
    monkeypatch.setattr(mapped_rows.host, "free_bytes", lambda: free)
    with open(folder / "rows.npy", "wb") as file:
        rows = np.ones(100, [("numbers", "<f4", (3,))])
        writer = row_file.RowWriter(file, rows.dtype)
        writer.append(rows)
        writer.finish()
    opened = pickle.loads(pickle.dumps(row_file.RowFile(folder / "rows.npy")))
    assert opened.rows["numbers"].sum() == 300
    # That of the first, which is gone, was taken back.
    assert said == [mmap.MADV_RANDOM, mmap.MADV_NORMAL, mmap.MADV_RANDOM] * advised


def test_numbers_that_stop_being_numbers_name_the_file(folder: pathlib.Path) -> None:
    lines = "\n".join(["1,2"] * 300_000)  # More than one block.
    write(folder, a=f"x,y\n{lines}\nwarm,2\n")
    with pytest.raises(errors.MemfitError, match=r"a\.csv cannot be read as a table: .*warm.*`categories`"):
        data.table(folder, label="y", cache_dir=folder / "kept")
    assert list((folder / "kept").iterdir()) == []


def test_a_file_that_is_no_table(folder: pathlib.Path) -> None:
    (folder / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(errors.ArgumentError, match=r"a\.parquet cannot be read as a table"):
        data.table(folder, label="y")


def test_rows_of_every_kind_of_column() -> None:
    table = table_files.Frame(
        {"n": [1, 2], "f": [0.5, None], "b": [True, False], "t": ["x", None], "i": [7, 8], "w": [1.0, 2.0]}
    )
    assert table.kinds == {"n": "integer", "f": "number", "b": "flag", "t": "text", "i": "integer", "w": "number"}
    layout = Layout(("n", "f", "b"), ("t", "i"), ("n",), "integer", "w", missing=-1.0, max_categories=10)
    written: list[np.ndarray] = []
    texts = table_rows.convert(table, layout, written.append, vocabularies={}, report=lambda count: None)
    (rows,) = written
    assert rows["numbers"].tolist() == [[1, 0.5, 1], [2, -1, 0]]
    assert rows["categories"].tolist() == [[1, 1], [0, 2]]
    assert rows["labels"].tolist() == [1, 2]
    assert rows["weight"].tolist() == [1, 2]
    assert texts == {"t": ["x"], "i": ["7", "8"]}


def test_given_vocabularies_stay_and_unknown_texts_are_missing_ones() -> None:
    codes = Vocabularies({"a": ["x", "y"]}, max_categories=1)
    assert codes.encode("a", arrow.array(["y", "z", None, "x"])).tolist() == [2, 0, 0, 1]
    assert codes.encode("a", arrow.array(["y", "y"]).dictionary_encode()).tolist() == [2, 2]
    assert codes.unknown == {"a": "z"}


def test_pyarrow_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(errors.MemfitError, match=r"memfit.data.table needs pyarrow.*pip install 'memfit\[table\]'"):
        data.table(ROWS, label="age")
