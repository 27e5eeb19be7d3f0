from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.data.file_table import FileTable

NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20), max_size=30)


@given(names=NAMES)
def test_names_come_back_as_they_were(names: list[str]) -> None:
    table = FileTable("folder", ("a", "b"), names, [i % 2 for i in range(len(names))])
    assert [table.name(i) for i in range(len(table))] == names
    assert [table.path(i) for i in range(len(table))] == [
        os.path.join("folder", "ab"[i % 2], name) for i, name in enumerate(names)
    ]


def test_a_name_that_is_not_unicode_comes_back() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert os.fsencode(FileTable("", ("",), [name], [0]).path(0)) == b"caf\xe9.jpg"


def test_take_keeps_names_with_labels() -> None:
    table = FileTable("d", ("x", "y", "z"), ["0", "1", "2"], [0, 1, 2]).take(np.array([2, 0]))
    assert [table.path(i) for i in range(2)] == [os.path.join("d", "z", "2"), os.path.join("d", "x", "0")]
    assert table.labels.tolist() == [2, 0]


def test_a_file_takes_less_than_thirty_bytes_beside_its_name() -> None:
    names = [f"some-image-file-{i:08d}.jpg" for i in range(1000)]
    table = FileTable("a/long/path/to/the/images", ("class",), names, np.zeros(1000, np.int32))
    assert table.num_bytes <= sum(map(len, names)) + 30 * 1000


def test_an_index_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError):
        FileTable("d", ("x",), ["0"], [0]).path(1)
