"""The choice of segments against every arrangement of small chains."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.levers.remat_choice import (
    Chain,
    Tensor,
    Unit,
    choose,
    everything,
    held_at_peak,
    held_shares,
    ladder,
    peak_bytes,
    recomputation,
    smallest_bytes,
)
from memfit.records import Remat, Segment


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    number = draw(st.integers(1, 6))
    units = [
        Unit(str(i), draw(st.integers(0, 50)), float(draw(st.integers(0, 9))), draw(st.booleans()) and i % 3 == 2)
        for i in range(number)
    ]
    tensors = []
    for made in range(number):
        last = draw(st.integers(made + 1, number))
        size = draw(st.integers(0, max(0, units[made].inside_bytes)))
        tensors.append(Tensor(made, last, size, draw(st.integers(0, 9)) == 0))
    return Chain(tuple(units), tuple(tensors), joinable=draw(st.booleans()))


def every_arrangement(chain: Chain) -> Iterator[Remat]:
    number = len(chain.units)
    allowed = [c for c in range(number + 1) if c in (0, number) or not chain.joinable or chain.allowed(c)]
    if not chain.joinable:
        allowed = [c for c in allowed if c in (0, number) or chain.allowed(c)]
    for count in range(len(allowed) + 1):
        for inner in itertools.combinations(allowed, count):
            cuts = sorted({0, number, *inner})
            pieces = list(itertools.pairwise(cuts))
            for chosen in itertools.product((False, True), repeat=len(pieces)):
                segments = [Segment(*piece) for piece, one in zip(pieces, chosen, strict=True) if one]
                single = all(_is_single(s, allowed) for s in segments)
                fixed = any(unit.fixed for s in segments for unit in chain.units[s.start : s.stop])
                if not fixed and (chain.joinable or single):
                    yield Remat(tuple(segments))


def _is_single(segment: Segment, allowed: list[int]) -> bool:
    return allowed.index(segment.stop) - allowed.index(segment.start) == 1


@given(chains(), st.integers(0, 320))
@settings(max_examples=150, deadline=None)
def test_the_choice_is_the_cheapest_that_fits(chain: Chain, most: int) -> None:
    costs = [recomputation(chain, r) for r in every_arrangement(chain) if peak_bytes(chain, r) <= most]
    chosen = choose(chain, most)
    if chosen is None:
        assert not costs
    else:
        assert peak_bytes(chain, chosen) <= most
        assert recomputation(chain, chosen) == min(costs)


@given(chains())
@settings(max_examples=50, deadline=None)
def test_what_is_there_at_the_peak_is_of_the_kept_and_of_one_segment(chain: Chain) -> None:
    assert held_shares(chain, Remat(())) == {unit.name: 1.0 for unit in chain.units if unit.inside_bytes}
    for remat in every_arrangement(chain):
        moments = [held_while(chain, remat, segment) for segment in (*remat.segments, None)]
        held = held_at_peak(chain, remat)
        assert held in moments
        assert sum(held) == max(map(sum, moments)) == peak_bytes(chain, remat)


def held_while(chain: Chain, remat: Remat, now: Segment | None) -> tuple[int, ...]:
    """Of each unit, while a segment is recomputed, or when the forward pass has ended: the units that it has left behind."""
    found = []
    for place, unit in enumerate(chain.units):
        own = next((s for s in remat.segments if s.start <= place < s.stop), None)
        passed = now is None or place < now.stop
        read = sum(t.bytes for t in chain.tensors if own and t.made == place and t.last_read >= own.stop)
        kept = unit.inside_bytes if own is None else read
        found.append((kept if passed else 0) + (unit.inside_bytes if own is not None and own is now else 0))
    return tuple(found)


@given(chains())
@settings(max_examples=100, deadline=None)
def test_the_smallest_is_the_smallest(chain: Chain) -> None:
    assert smallest_bytes(chain) <= min(peak_bytes(chain, r) for r in every_arrangement(chain)) + 1


@given(chains())
@settings(max_examples=50, deadline=None)
def test_a_ladder_goes_from_cheap_to_small(chain: Chain) -> None:
    rungs = ladder(chain, 4)
    costs = [recomputation(chain, rung) for rung in rungs]
    assert costs == sorted(costs)
    assert len(set(rungs)) == len(rungs)


def uniform(number: int) -> Chain:
    units = tuple(Unit(str(i), 100, 1.0) for i in range(number))
    return Chain(units, tuple(Tensor(i, i + 1, 50) for i in range(number)))


def test_a_long_chain_is_cut_like_a_square_root() -> None:
    chain = uniform(400)
    remat = choose(chain, 2 * smallest_bytes(chain))
    assert remat is not None
    assert smallest_bytes(chain) < 0.25 * chain.plain_bytes
    assert recomputation(chain, remat) < recomputation(chain, ladder(chain)[-1])


def test_a_skip_connection_over_everything_is_held_once() -> None:
    units = tuple(Unit(str(i), 100, 1.0) for i in range(4))
    tensors = (Tensor(0, 3, 60), *(Tensor(i, i + 1, 10) for i in range(1, 4)))
    chain = Chain(units, tensors)
    assert peak_bytes(chain, Remat((Segment(0, 2), Segment(2, 4)))) == max(60 + 10 + 200, 70 + 10 + 200)


def test_everything_leaves_out_what_cannot_run_twice() -> None:
    units = tuple(Unit(str(i), 100, 1.0, fixed=i == 2) for i in range(6))
    chain = Chain(units, tuple(Tensor(i, i + 1, 10) for i in range(6)))
    positions = {p for s in everything(chain, 2).segments for p in range(s.start, s.stop)}
    assert positions == {0, 1, 3, 4, 5}
