"""Growth that goes on, told apart from a warm-up that ends: a robust slope over what a run holds between its steps."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

from memfit import units

MOST_WINDOWS = 64
_FEWEST_WINDOWS = 6
_WARM_UP = 0.25
"""Of the windows, those at the start in which allocators and caches fill."""

_RISING = 0.9
"""Of all pairs of windows, how many must rise: noise around a level makes half of them."""

_LASTING = 0.4
"""What the slope of the later half must be of the earlier half's: on the way to a plateau it falls towards nothing."""

_LEAST_SHARE = 0.002
_LEAST_BYTES = 256 * units.KIB


@dataclasses.dataclass(frozen=True)
class Growth:
    """Memory that grows without an end in sight.

    Attributes:
        bytes_per_batch: The slope.
        first: What was held after the warm-up.
        last: What is held now.
        num_batches: Batches between the two.
    """

    bytes_per_batch: float
    first: int
    last: int
    num_batches: int

    def text(self, batches_per_epoch: int | None) -> str:
        """The sentence that a person reads."""
        per, unit = (batches_per_epoch, "an epoch") if batches_per_epoch else (1000, "in 1000 batches")
        grown = f"from {units.text(self.first)} to {units.text(self.last)} in {self.num_batches} batches"
        return f"host memory grows by {self.bytes_per_batch * per / 1e6:.1f} MB {unit}: {grown}"


class Levels:
    """The least that was held in each of at most 64 equal windows of a run, however long it is.

    Example:
        >>> levels = Levels()
        >>> for batch in range(1000):
        ...     levels.add(batch, 100_000_000 + 50_000 * batch)
        >>> round(levels.growth().bytes_per_batch)
        50000
    """

    def __init__(self) -> None:
        self._windows: dict[int, int] = {}
        self._batches_each = 1

    def add(self, batch: int, held: int) -> None:
        """What is held between two steps.

        Args:
            batch: How many batches have been trained; never falls.
            held: Bytes.
        """
        while batch // self._batches_each >= MOST_WINDOWS:
            windows, self._windows = self._windows, {}
            self._batches_each *= 2
            for index, least in windows.items():
                self._lower(index // 2, least)
        self._lower(batch // self._batches_each, held)

    def growth(self) -> Growth | None:
        """The growth of the windows so far; None where it may be noise, a warm-up, or the way to a plateau."""
        last = max(self._windows, default=0)
        settled = [(index, held) for index, held in self._windows.items() if index >= _WARM_UP * last]
        if len(settled) < _FEWEST_WINDOWS:
            return None
        slope, rising = _theil_sen(settled)
        (begin, first), (end, now) = settled[0], settled[-1]
        if rising < _RISING or slope * (end - begin) < max(_LEAST_BYTES, _LEAST_SHARE * first):
            return None
        half = len(settled) // 2
        earlier, later = _theil_sen(settled[: half + 1])[0], _theil_sen(settled[half:])[0]
        if later < _LASTING * max(earlier, slope):
            return None
        return Growth(slope / self._batches_each, first, now, (end - begin) * self._batches_each)

    def _lower(self, index: int, held: int) -> None:
        self._windows[index] = min(self._windows.get(index, held), held)


def _theil_sen(levels: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The median of the slopes between all pairs, and the share of pairs that rise (Theil 1950, Sen 1968)."""
    slopes = [(b - a) / (second - first) for (first, a), (second, b) in itertools.combinations(levels, 2)]
    return statistics.median(slopes), sum(slope > 0 for slope in slopes) / len(slopes)
