"""Batches of changing shapes: before the step of one that is larger than every one before, whether the plan still fits.

On a host the kernel kills and nothing can be caught, so that it is asked beforehand. The step that was planned is scaled by the
square of the batches' bytes, as attention grows; only where that would not fit is the step of this batch analysed and planned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Larger:
    """Looks at each batch before its step.

    Args:
        planned_bytes: Of the batch that was planned for.
        described: Gives the shapes of a batch, and its bytes; None where they are not plain.
        fits: Called with how many times as much a step may take as was planned; gives whether that fits. None where nothing
            was predicted.
        replan: Called with the shapes of a batch: puts a plan on the model that fits it, as far as there is one.
    """

    def __init__(
        self,
        planned_bytes: int,
        *,
        described: Callable[[Any], tuple[Any, int] | None],
        fits: Callable[[float], bool],
        replan: Callable[[Any], None],
    ) -> None:
        self._planned_bytes = planned_bytes
        self._largest = planned_bytes
        self._described = described
        self._fits = fits
        self._replan = replan

    def look(self, batch: Any) -> None:
        """Before the step of a batch."""
        found = self._described(batch)
        if found is None or found[1] <= self._largest:
            return
        shapes, self._largest = found
        if not self._fits((self._largest / max(1, self._planned_bytes)) ** 2):
            self._replan(shapes)
            self._planned_bytes = self._largest
