from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memfit.data import shuffling

SEEDS = st.integers(0, 2**40)


@given(num_samples=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch(num_samples: int, seed: int, epoch: int) -> None:
    order = shuffling.epoch_order(num_samples, seed=seed, epoch=epoch)[:]
    assert sorted(order.tolist()) == list(range(num_samples))
    np.testing.assert_array_equal(order, shuffling.epoch_order(num_samples, seed=seed, epoch=epoch)[:])


@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int) -> None:
    order = shuffling.epoch_order(100, seed=seed, epoch=epoch)[:].tolist()
    assert order != shuffling.epoch_order(100, seed=seed, epoch=epoch + 1)[:].tolist()
    assert order != shuffling.epoch_order(100, seed=seed + 1, epoch=epoch)[:].tolist()


def test_the_order_does_not_change_between_versions() -> None:
    assert shuffling.epoch_order(10, seed=7, epoch=3)[:].tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


@given(num_samples=st.integers(0, 3000), seed=SEEDS, epoch=st.integers(0, 1000), size=st.integers(1, 700))
def test_an_order_that_is_computed_is_a_permutation_whose_slices_fit_together(
    num_samples: int, seed: int, epoch: int, size: int
) -> None:
    order = shuffling.ComputedOrder(num_samples, key=(seed, epoch))
    slices = [order[start : start + size] for start in range(0, num_samples, size)]
    found = [sample for part in slices for sample in part.tolist()]
    assert sorted(found) == list(range(num_samples)) == list(range(len(order)))
    assert order[:].tolist() == found
    assert shuffling.ComputedOrder(num_samples)[3:size].tolist() == list(range(num_samples))[3:size]


def test_an_order_that_is_computed_looks_drawn() -> None:
    num_samples = 100_000
    orders = [shuffling.ComputedOrder(num_samples, key=key)[:] for key in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        # The standard error of a correlation of so many is 0.003.
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015
        assert abs(np.corrcoef(order, np.arange(num_samples))[0, 1]) < 0.015
        counts, _, _ = np.histogram2d(order, np.arange(num_samples), bins=10)
        assert abs(counts - 1000).max() < 150
        assert abs(np.sum(order == np.arange(num_samples)) - 1) < 8
    assert abs(np.corrcoef(orders)[np.triu_indices(3, 1)]).max() < 0.015


def test_the_order_of_many_samples_takes_no_memory_and_does_not_change_between_versions() -> None:
    order = shuffling.epoch_order(10**10, seed=7, epoch=3)
    assert order[10**9 : 10**9 + 3].tolist() == [2594864083, 274408594, 9987414695]
    assert shuffling.order_bytes(10**10) == 0
    few = shuffling.epoch_order(1000, seed=7, epoch=3)
    assert isinstance(few, np.ndarray)
    assert shuffling.order_bytes(1000) == few.nbytes


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    validation_split=st.floats(0.01, 0.99),
    seed=SEEDS,
)
def test_a_split_takes_every_sample_once_and_its_share_of_each_class(
    labels: list[int], validation_split: float, seed: int
) -> None:
    classes = np.asarray(labels)
    training, validation = shuffling.split(classes, validation_split=validation_split, seed=seed)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    for label in set(labels):
        assert abs(np.sum(classes[validation] == label) - validation_split * labels.count(label)) <= 0.5
    again = shuffling.split(classes, validation_split=validation_split, seed=seed)
    np.testing.assert_array_equal(again[1], validation)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=SEEDS, epoch=st.integers(0, 9), data=st.data())
def test_stand_ins_are_all_others_those_of_the_class_first(
    labels: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(labels) - 1))
    found = list(shuffling.stand_ins(np.asarray(labels), index, seed=seed, epoch=epoch))
    assert sorted([*found, index]) == list(range(len(labels)))
    same_class = [labels[candidate] == labels[index] for candidate in found]
    assert same_class == sorted(same_class, reverse=True)
    assert found == list(shuffling.stand_ins(np.asarray(labels), index, seed=seed, epoch=epoch))
