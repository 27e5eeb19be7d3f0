from __future__ import annotations

import warnings

import pytest

from memfit import errors
from memfit.data.broken_files import BrokenFiles, SkippedFile


def file(name: str) -> SkippedFile:
    return SkippedFile(f"cats/{name}.jpg", "image file is truncated")


def test_each_file_is_reported_once_with_its_path() -> None:
    broken = BrokenFiles(5)
    broken.add(3, file("a"))
    broken.add(3, file("a"))
    broken.add(1, file("b"))
    with pytest.warns(UserWarning, match="memfit skips") as caught:
        broken.warn()
    assert [str(warning.message) for warning in caught] == [
        "memfit skips cats/a.jpg: image file is truncated",
        "memfit skips cats/b.jpg: image file is truncated",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broken.warn()
    assert 3 in broken
    assert 0 not in broken
    assert [skipped.path for skipped in broken.skipped] == ["cats/a.jpg", "cats/b.jpg"]


def test_files_known_before_are_listed_and_count() -> None:
    broken = BrokenFiles(5, [file("empty")], max_broken=1)
    assert broken.skipped == (file("empty"),)
    with pytest.raises(errors.MemfitError, match=r"2 of 6 files cannot be read.*max_broken=1"):
        broken.add(0, file("a"))


def test_too_many_known_before_are_an_error_at_once() -> None:
    with pytest.raises(errors.MemfitError, match=r"Received: max_broken=0"):
        BrokenFiles(5, [file("empty")], max_broken=0)


def test_none_left_is_an_error_that_names_the_first_and_the_cure() -> None:
    broken = BrokenFiles(2)
    broken.add(0, file("a"))
    with pytest.raises(errors.MemfitError, match=r"2 of 2 files .* none is left(?s:.*)cats/a.jpg(?s:.*)download"):
        broken.add(1, file("b"))
