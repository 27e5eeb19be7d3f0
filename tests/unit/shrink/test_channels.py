"""Atoms, ties and classes: what is tied goes together, what is fixed stays."""

from __future__ import annotations

import itertools

import numpy as np

from memfit.shrink.channels import Kept, Ties


def test_ties_are_transitive_and_position_by_position() -> None:
    ties = Ties()
    a, b, c = ties.fresh(3), ties.fresh(3), ties.fresh(3)
    ties.tie(a, b)
    ties.tie(c, b)
    classes = ties.classes()
    assert np.array_equal(classes.of(a), classes.of(c))
    assert len(set(classes.of(a).tolist())) == 3


def test_a_chain_of_ties_in_any_order_is_one_class() -> None:
    ties = Ties()
    links = [ties.fresh(2) for _ in range(40)]
    pairs = list(itertools.pairwise(links))
    for left, right in pairs[::2] + pairs[1::2][::-1]:
        ties.tie(right, left)
    classes = ties.classes()
    assert all(np.array_equal(classes.of(link), classes.of(links[0])) for link in links)


def test_what_is_tied_to_something_fixed_stays() -> None:
    ties = Ties()
    a, b, free = ties.fresh(2), ties.fresh(2), ties.fresh(2)
    ties.tie(a, b)
    ties.fix(b[:1])
    classes = ties.classes()
    assert classes.fixed[classes.of(a)].tolist() == [True, False]
    assert not classes.fixed[classes.of(free)].any()


def test_a_tie_to_a_width_that_must_stay_fixes() -> None:
    ties = Ties()
    a = ties.fresh(2)
    assert ties.tie(a, None) is None
    assert ties.classes().fixed[a].all()


def test_kept_positions_of_atoms_that_are_spread_out() -> None:
    ties = Ties()
    a = ties.fresh(3)
    kept = Kept.all_of(ties.classes()).without([1])
    assert kept.positions(np.tile(a, 2)).tolist() == [0, 2, 3, 5]
