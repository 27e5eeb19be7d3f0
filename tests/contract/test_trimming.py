"""When the heap is trimmed between two steps."""

from __future__ import annotations

import pytest

from memfit.backends import host_allocator
from memfit.guarding.trimming import Trimming


@pytest.mark.parametrize(("held", "most", "trims"), [(10, 9, 2), (9, 9, 0), (10, None, 0)])
def test_the_heap_is_trimmed_before_each_step_that_would_not_fit_and_no_other(
    monkeypatch: pytest.MonkeyPatch, held: int, most: int | None, trims: int
) -> None:
    trimmed = []
    monkeypatch.setattr(host_allocator, "trim", lambda: trimmed.append(True))
    trimming = Trimming(lambda: held, lambda: most)
    for batch in range(2):
        trimming.on_train_batch_begin(batch)
    assert len(trimmed) == trims


def test_where_there_is_room_it_looks_seldom() -> None:
    looks = []
    trimming = Trimming(lambda: looks.append(True) or 1, lambda: 2)
    for batch in range(10):
        trimming.on_train_batch_begin(batch)
    assert len(looks) == 1
