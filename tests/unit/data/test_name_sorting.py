from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memfit.data import name_sorting
from memfit.data.name_sorting import NameSorter, PackedNames

NAMES = st.lists(st.binary(max_size=12).map(lambda name: name.replace(b"\0", b"0")), max_size=40)


@given(names=NAMES, run=st.integers(1, 9))
def test_names_come_sorted_with_their_numbers_however_many_runs_there_are(names: list[bytes], run: int) -> None:
    sorter = NameSorter(run)
    for number, name in enumerate(names):
        sorter.add(name, number)
    found = list(sorter.sorted())
    assert [name for name, _ in found] == sorted(names)
    assert found == sorted((name, number) for number, name in enumerate(names))


@given(names=NAMES, data=st.data())
def test_some_of_packed_names_are_those_names(names: list[bytes], data: st.DataObject) -> None:
    packed = PackedNames(names)
    assert list(packed) == names
    chosen = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=60)) if names else []
    assert list(packed.take(np.asarray(chosen, np.int32))) == [names[index] for index in chosen]


def test_more_names_than_are_taken_at_a_time() -> None:
    names = [b"%d" % number for number in range(name_sorting.RUN + 10)]
    order = np.random.default_rng(0).permutation(len(names))
    assert list(PackedNames(names).take(order)) == [names[index] for index in order]
