"""Which segments to recompute: the least recomputation whose activations stay under a number of bytes. Pure arithmetic.

Units follow one another. A kept unit retains what its backward pass reads. A recomputed segment retains only what later
ones read of it, and while the backward pass is in it, all of its inside is there again, on top of what the units before it
retain (what later ones retained is gone by then). Chen et al. 2016 (arXiv:1604.06174) cut every square root of n units;
like Jain et al. 2020 (Checkmate, arXiv:1910.02653) this takes the units' own bytes and costs, for a chain an exact
dynamic program instead of an integer program.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from memfit.records import Remat, Segment

_MOST_SPANS = 48
"""Cuts that are considered: a longer chain is first joined into so many spans, each ended where little is live."""

_MOST_STATES = 256
"""Arrangements that are followed at each cut; among more, the cheapest of those that retain nearly the same."""

_BISECTIONS = 24

_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One operation.

    Attributes:
        name: Of the layer or operation.
        inside_bytes: What its backward pass reads that it made: outputs and what lies between.
        cost: Of computing it once more, in units of a floating-point operation.
        fixed: Whether it cannot be computed twice.
        rounds: How often its operations are issued in one pass: the time steps of a recurrent layer.
    """

    name: str
    inside_bytes: int
    cost: float
    fixed: bool = False
    rounds: int = 1


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What one unit makes and later ones read.

    Attributes:
        made: The unit that makes it.
        last_read: The last unit that reads it; the number of units where the model returns it.
        bytes: Its size.
        uncuttable: Whether no segment may end between the two, because it is not dense.
    """

    made: int
    last_read: int
    bytes: int
    uncuttable: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
    """A model as a sequence of operations.

    Attributes:
        units: In the order in which they run.
        tensors: What passes from unit to unit.
        joinable: Whether several units may be recomputed as one segment; else each by itself.
    """

    units: tuple[Unit, ...]
    tensors: tuple[Tensor, ...]
    joinable: bool = True

    @property
    def plain_bytes(self) -> int:
        """Activations of the plain step."""
        return sum(unit.inside_bytes for unit in self.units)

    @property
    def cost(self) -> float:
        """Computing every unit once."""
        return sum(unit.cost for unit in self.units)

    @property
    def rounds(self) -> int:
        """How many units are issued one after the other in one pass."""
        return sum(unit.rounds for unit in self.units)

    def live_bytes(self, cut: int) -> int:
        """Bytes of the tensors that cross the cut before a unit."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.made < cut <= tensor.last_read)

    def allowed(self, cut: int) -> bool:
        """Whether a segment may begin or end before a unit."""
        return not any(t.uncuttable and t.made < cut <= t.last_read for t in self.tensors)


def peak_bytes(chain: Chain, remat: Remat) -> int:
    """The most activations that are there at once with an arrangement."""
    return sum(held_at_peak(chain, remat))


def held_at_peak(chain: Chain, remat: Remat) -> tuple[int, ...]:
    """What is there of each unit's activations when most is there at once, in bytes.

    Example:
        >>> units = tuple(Unit(name, 10, 1.0) for name in "abcd")
        >>> tensors = tuple(Tensor(place, place + 1, 4) for place in range(4))
        >>> held_at_peak(Chain(units, tensors), Remat((Segment(0, 1), Segment(1, 3))))
        (4, 10, 14, 0)
    """
    held, position = [0] * len(chain.units), 0
    highest = list(held)
    for segment in remat.segments:
        for place in range(position, segment.start):
            held[place] = chain.units[place].inside_bytes
        for tensor in chain.tensors:
            if segment.start <= tensor.made < segment.stop <= tensor.last_read:
                held[tensor.made] += tensor.bytes
        again = list(held)
        for place in range(segment.start, segment.stop):
            again[place] += chain.units[place].inside_bytes
        highest = max(highest, again, key=sum)
        position = segment.stop
    for place in range(position, len(chain.units)):
        held[place] = chain.units[place].inside_bytes
    return tuple(max(highest, held, key=sum))


def held_shares(chain: Chain, remat: Remat) -> dict[str, float]:
    """Of each unit by its name, what is there at the peak, relative to what it keeps in the plain step."""
    plain: dict[str, int] = {}
    held: dict[str, int] = {}
    for unit, num_bytes in zip(chain.units, held_at_peak(chain, remat), strict=True):
        plain[unit.name] = plain.get(unit.name, 0) + unit.inside_bytes
        held[unit.name] = held.get(unit.name, 0) + num_bytes
    return {name: held[name] / num_bytes for name, num_bytes in plain.items() if num_bytes}


def recomputation(chain: Chain, remat: Remat) -> float:
    """What an arrangement computes a second time, in the units of ``Unit.cost``."""
    return sum(unit.cost for unit in _recomputed(chain, remat))


def issued_again(chain: Chain, remat: Remat) -> int:
    """How many layers an arrangement issues a second time, as ``Unit.rounds`` counts."""
    return sum(unit.rounds for unit in _recomputed(chain, remat))


def _recomputed(chain: Chain, remat: Remat) -> list[Unit]:
    return [unit for segment in remat.segments for unit in chain.units[segment.start : segment.stop]]


def choose(chain: Chain, most_bytes: int) -> Remat | None:
    """The arrangement with the least recomputation among those whose activations never exceed some bytes.

    Exact up to 48 cuts; longer chains are cut only where little is live.

    Args:
        chain: The model.
        most_bytes: What ``peak_bytes`` of the arrangement may be.

    Returns:
        The arrangement, or None where none is small enough.

    Example:
        >>> units = tuple(Unit(name, 100, 1.0) for name in "abcd")
        >>> tensors = tuple(Tensor(i, i + 1, 40) for i in range(4))
        >>> choose(Chain(units, tensors), 400)
        Remat(segments=())
        >>> choose(Chain(units, tensors), 340)
        Remat(segments=(Segment(start=0, stop=1),))
        >>> choose(Chain(units, tensors), 100) is None
        True
    """
    spans = _Spans(chain)
    start = _State(0, 0.0, None, None)
    fronts: list[list[_State]] = [[start], *([] for _ in range(spans.number))]
    for stop in range(1, spans.number + 1):
        states = [
            _State(before.retained + spans.inside[stop] - spans.inside[stop - 1], before.cost, None, before)
            for before in fronts[stop - 1]
        ]
        for first in spans.starts(stop):
            out = spans.out(first, stop)
            inside = spans.inside[stop] - spans.inside[first]
            cost = spans.cost[stop] - spans.cost[first]
            states += [
                _State(before.retained + out, before.cost + cost, (first, stop), before)
                for before in fronts[first]
                if before.retained + out + inside <= most_bytes
            ]
        fronts[stop] = _front([state for state in states if state.retained <= most_bytes], most_bytes)
    best = min(fronts[-1], key=lambda state: (state.cost, state.retained), default=None)
    return None if best is None else Remat(tuple(Segment(*spans.positions(*span)) for span in best.segments()))


def smallest_bytes(chain: Chain) -> int:
    """The least that ``choose`` can keep the activations under, to a thousandth."""
    spans = _Spans(chain)
    low, high = 0, chain.plain_bytes
    for _ in range(_BISECTIONS):
        if high - low <= max(1, chain.plain_bytes // 1000):
            break
        middle = (low + high) // 2
        if spans.least_retained(middle) is None:
            low = middle
        else:
            high = middle
    return high


def ladder(chain: Chain, rungs: int = 8) -> tuple[Remat, ...]:
    """Arrangements from the cheapest recomputation to the smallest memory, no two alike.

    Args:
        chain: The model.
        rungs: How many at most.
    """
    smallest, plain = smallest_bytes(chain), chain.plain_bytes
    found: list[Remat] = []
    for rung in range(1, rungs + 1):
        remat = choose(chain, plain - (plain - smallest) * rung // rungs)
        if remat is not None and remat.segments and remat not in found:
            found.append(remat)
    return tuple(found)


def everything(chain: Chain, segments: int) -> Remat:
    """About so many segments of equal bytes that recompute all that can be computed twice."""
    spans = _Spans(chain)
    total = spans.inside[-1]
    targets = [total * number // segments for number in range(1, segments)]
    cuts = sorted({0, spans.number, *(bisect.bisect_left(spans.inside, target) for target in targets)})
    if not chain.joinable:
        cuts = list(range(spans.number + 1))
    pieces = itertools.chain.from_iterable(spans.without_fixed(start, stop) for start, stop in itertools.pairwise(cuts))
    return Remat(tuple(Segment(*spans.positions(*piece)) for piece in pieces))


@dataclasses.dataclass(frozen=True)
class _State:
    """A way to arrange the first spans: what it retains and recomputes, the last segment, and the state before."""

    retained: int
    cost: float
    segment: tuple[int, int] | None
    before: _State | None

    def segments(self) -> list[tuple[int, int]]:
        found = []
        state: _State | None = self
        while state is not None:
            if state.segment is not None:
                found.append(state.segment)
            state = state.before
        return found[::-1]


def _front(states: list[_State], most_bytes: int) -> list[_State]:
    """The states that no other beats in both retained bytes and cost."""
    front: list[_State] = []
    for state in sorted(states, key=lambda state: (state.retained, state.cost)):
        if not front or state.cost < front[-1].cost:
            front.append(state)
    if len(front) <= _MOST_STATES:
        return front
    width = max(1, most_bytes // _MOST_STATES)
    groups = itertools.groupby(front, key=lambda state: state.retained // width)
    return [front[0], *(list(group)[-1] for _, group in groups)]


class _Spans:
    """The chain between the cuts that are considered, with sums that make each candidate segment a subtraction."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.cuts = _cuts(chain)
        self.number = len(self.cuts) - 1
        self.inside = self._sums([unit.inside_bytes for unit in chain.units])
        self.cost = self._sums([unit.cost for unit in chain.units])
        self._fixed = self._sums([int(unit.fixed) for unit in chain.units])
        place = {cut: number for number, cut in enumerate(self.cuts)}
        end = len(chain.units)
        self._read: list[list[tuple[int, int]]] = [[] for _ in range(self.number)]
        for tensor in chain.tensors:
            made = bisect.bisect_right(self.cuts, tensor.made) - 1
            read = place[end] if tensor.last_read >= end else bisect.bisect_right(self.cuts, tensor.last_read) - 1
            returned = tensor.last_read >= end
            if made < self.number and (read > made or returned):
                self._read[made].append((self.number if returned else read, tensor.bytes))
        self._outs: dict[tuple[int, int], int] = {}
        for stop in range(1, self.number + 1):
            out = 0
            for first in range(stop - 1, -1, -1):
                out += sum(size for read, size in self._read[first] if read >= stop)
                self._outs[first, stop] = out

    def _sums(self, values: Iterable[_Number]) -> list[_Number]:
        sums: list[Any] = list(itertools.accumulate(values, initial=0))
        return [sums[cut] for cut in self.cuts]

    def positions(self, first: int, stop: int) -> tuple[int, int]:
        """The units of some spans."""
        return self.cuts[first], self.cuts[stop]

    def out(self, first: int, stop: int) -> int:
        """Bytes that spans make and later ones read."""
        return self._outs[first, stop]

    def starts(self, stop: int) -> Iterator[int]:
        """Where a recomputed segment that ends at a cut may begin."""
        for first in range(stop - 1, -1, -1):
            if self._fixed[stop] != self._fixed[first]:
                return
            yield first
            if not self._chain.joinable:
                return

    def without_fixed(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The longest runs between two cuts that can be computed twice."""
        first = start
        for place in range(start, stop):
            if self._fixed[place + 1] != self._fixed[place]:
                if place > first:
                    yield first, place
                first = place + 1
        if stop > first:
            yield first, stop

    def least_retained(self, most_bytes: int) -> int | None:
        """The least that is retained at the end under a ceiling; None where nothing stays under it."""
        least: list[int | None] = [0] + [None] * self.number
        for stop in range(1, self.number + 1):
            before = least[stop - 1]
            found = [] if before is None else [before + self.inside[stop] - self.inside[stop - 1]]
            for first in self.starts(stop):
                before, out = least[first], self.out(first, stop)
                inside = self.inside[stop] - self.inside[first]
                if before is not None and before + out + inside <= most_bytes:
                    found.append(before + out)
            least[stop] = min((one for one in found if one <= most_bytes), default=None)
        return least[-1]


def _cuts(chain: Chain) -> list[int]:
    """Where a segment may begin or end: all allowed places of a short chain, the narrowest of a long one."""
    number = len(chain.units)
    allowed = [cut for cut in range(1, number) if chain.allowed(cut)]
    if len(allowed) < _MOST_SPANS or not chain.joinable:
        return [0, *allowed, number]
    sums = list(itertools.accumulate((unit.inside_bytes for unit in chain.units), initial=0))
    groups = itertools.groupby(allowed, key=lambda cut: sums[cut] * _MOST_SPANS // (sums[-1] + 1))
    narrowest = [min(group, key=lambda cut: (chain.live_bytes(cut), cut)) for _, group in groups]
    return sorted({0, number, *narrowest})
