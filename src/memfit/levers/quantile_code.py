"""The dynamic code of 8-bit optimizers: numbers between -1 and 1 (or 0 and 1) in one byte, finest where they are smallest.

Seven decades, from 1e-7 to 1, are each cut into equal steps: one in the lowest decade (two without a sign), twice as many in
each decade above. A code stands for the middle of its step; zero and one have codes of their own (Dettmers et al. 2022, "8-bit
Optimizers via Block-wise Quantization", arXiv:2110.02861, section 1.3).

Counted from zero, a number's step is a concave function of it, linear in each decade: the least of seven lines. So the code
is found by multiplications and comparisons alone, which every framework does for whole arrays at once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

DECADES = 7
SIZE = 256


@dataclasses.dataclass(frozen=True)
class DynamicCode:
    """The code of numbers with a sign or without one.

    Attributes:
        signed: Whether numbers are from -1 to 1, else from 0 to 1.

    Example:
        >>> code = DynamicCode(signed=True)
        >>> codes = code.codes(np.array([-0.5, 0.0, 0.0002, 1.0]), np).astype("uint8")
        >>> [round(float(number), 5) for number in code.table[codes]]
        [-0.50078, 0.0, 0.00016, 1.0]
    """

    signed: bool

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The 256 numbers that codes stand for, ascending, float32."""
        decades = [np.linspace(0.1, 1.0, steps + 1) * 10.0 ** (decade - DECADES + 1) for decade, steps in self._steps]
        middles = np.concatenate([(edges[:-1] + edges[1:]) / 2 for edges in decades])
        negative = -middles[::-1] if self.signed else middles[:0]
        return np.concatenate([negative, [0.0], middles, [1.0]]).astype("float32")

    @property
    def zero(self) -> int:
        """The code of zero."""
        return self._num_steps if self.signed else 0

    def codes(self, numbers: Any, xp: Any, *, offset: Any = 1.0) -> Any:
        """The codes of the steps that numbers are in, as whole floats from 0 to 255.

        Args:
            numbers: Floats from -1 to 1, or from 0 to 1.
            xp: What computes: ``keras.ops`` or ``numpy``.
            offset: 1 for the step itself, 0.5 for the next number of the table towards zero, so that what shrinks a little
                each time does not stay where it is.
        """
        size = xp.abs(numbers)
        lines = [size * slope + start for slope, start in self._lines]
        place = xp.floor(xp.maximum(functools.reduce(xp.minimum, lines) + offset, 0.0))
        place = xp.minimum(place, float(self._num_steps))
        if self.signed:
            place = float(self.zero) + xp.sign(numbers) * place
        return xp.where(numbers > self._nearly_one, float(SIZE - 1), place)

    @property
    def _steps(self) -> list[tuple[int, int]]:
        """Each decade, from the lowest, and its number of steps."""
        return [(decade, 2**decade * (1 if self.signed else 2)) for decade in range(DECADES)]

    @property
    def _num_steps(self) -> int:
        return sum(steps for _, steps in self._steps)

    @property
    def _lines(self) -> list[tuple[float, float]]:
        """Slope and start of each decade's line: where a number is, in steps counted from 1e-7."""
        lines, before = [], 0
        for decade, steps in self._steps:
            lines.append((steps / 0.9 * 10.0 ** (DECADES - 1 - decade), before - steps / 9.0))
            before += steps
        return lines

    @property
    def _nearly_one(self) -> float:
        return float(self.table[-2] + self.table[-1]) / 2


SIGNED = DynamicCode(signed=True)
UNSIGNED = DynamicCode(signed=False)
