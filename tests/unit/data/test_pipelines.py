"""What is decided about a pipeline's stages, as a table; no framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memfit.backends.pipeline_records import ENDLESS, Change, Stage
from memfit.data import disk, pipelines

MIB = 2**20


def stages(**changed: Any) -> list[Stage]:
    """names - map to 1 MiB - cache of 100 - shuffle of 50 - batch of 8 - prefetch of 16 batches."""
    default = {
        "source": Stage("other", "TensorSliceDataset", 100, 0, False),
        "map": Stage("map", "map(...)", MIB, 2, True, one_to_one=True),
        "cache": Stage("cache", "cache()", MIB, 100, True),
        "shuffle": Stage("shuffle", "shuffle(50)", MIB, 50, True),
        "batch": Stage("batch", "batch(8)", 8 * MIB, 1, True),
        "prefetch": Stage("prefetch", "prefetch(AUTOTUNE)", 8 * MIB, 16, True, autotuned=True),
    }
    return [stage for stage in (default | changed).values() if stage is not None]


def folder_with(free: int) -> Any:
    return lambda num_bytes: (Path("/disk"), "1 GiB free") if num_bytes <= free else (None, "the disk is full")


@pytest.mark.parametrize(
    ("share", "free", "changes", "held"),
    [
        # The cache's elements and the shuffle's are the same ones.
        (400, 0, (), 2 + 100 + 8 + 128),
        (200, 0, (Change(5, "size", 2),), 2 + 100 + 8 + 16),
        (100, 200, (Change(2, "file", target="/disk"), Change(5, "size", 2)), 2 + 50 + 8 + 16),
        (100, 0, (Change(2, "drop"), Change(5, "size", 2)), 2 + 50 + 8 + 16),
        (46, 200, (Change(2, "file", target="/disk"), Change(3, "size", 20), Change(5, "size", 2)), 46),
    ],
)
def test_what_costs_least_is_changed_first(share: int, free: int, changes: tuple[Change, ...], held: int) -> None:
    found = pipelines.decide(stages(), share * MIB, folder_with(free * MIB))
    assert found.changes == changes
    assert found.held_bytes == held * MIB
    assert len(found.findings) == len(changes)


def test_a_shuffle_of_images_becomes_one_of_names() -> None:
    found = pipelines.decide(stages(cache=None, prefetch=None), 20 * MIB, folder_with(0))
    assert found.changes == (Change(2, "move", size=1),)
    assert "comes before the map" in found.findings[0]
    # Not where the source's elements are as large.
    source = Stage("other", "TensorSliceDataset", 2 * MIB, 0, False)
    found = pipelines.decide(stages(source=source, cache=None, prefetch=None), 20 * MIB, folder_with(0))
    assert found.changes == ()
    assert "pass a smaller buffer to `.shuffle`" in found.findings[0], "a shuffle of 10 mixes nothing"
    found = pipelines.decide(stages(source=source, cache=None, prefetch=None), 40 * MIB, folder_with(0))
    assert found.changes == (Change(2, "size", size=30),)


def test_a_cache_that_never_ends_is_left_out() -> None:
    endless = Stage("cache", "cache()", MIB, ENDLESS, True)
    found = pipelines.decide(stages(cache=endless, prefetch=None), 400 * MIB, folder_with(10**15))
    assert found.changes == (Change(2, "drop"),)
    assert "without end" in found.findings[0]


def test_what_cannot_be_changed_is_named_with_the_line_to_change() -> None:
    fixed = Stage("cache", "cache()", MIB, 100, False)
    found = pipelines.decide([fixed], 10 * MIB, folder_with(10**15))
    assert not found.changes
    assert "still holds 100" in found.findings[0]
    assert "replace `.cache()` by `.cache(filename)`" in found.findings[0]
    unknown = Stage("shuffle", "shuffle(9)", None, 9, True)
    assert "nothing tells how much `shuffle(9)`" in pipelines.decide([unknown], MIB, folder_with(0)).findings[0]


def test_anything_else_is_left_as_it_is() -> None:
    for data in (np.zeros(3), iter([]), None):
        assert pipelines.bounded(data, 1) == (data, ()) or data is not None
        assert pipelines.bounded(data, 1)[0] is data


def test_a_folder_in_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "new"))
    assert disk.roomy_folder(1)[0] == tmp_path / "new"
    assert disk.roomy_folder(2**60)[0] is None
    monkeypatch.setattr(disk, "_file_system", lambda path: "tmpfs")
    assert disk.roomy_folder(1)[0] is None
