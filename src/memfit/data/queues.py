"""The queue of whole batches that Keras fills for a ``PyDataset`` with workers, made smaller for a run.

Its order stays, so that the result does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from memfit.profiling.batches import is_filled_ahead
from memfit.units import text

_SHARE = 0.25
"""Of the room that the budget leaves on the host, what batches in flight may hold: the rest is for the step."""

_LEAST = 3
"""Batches of the smallest queue: two being made, one waiting."""


@dataclasses.dataclass(frozen=True)
class Queue:
    """How many batches of a data set are in flight.

    Attributes:
        workers: Batches being made.
        waiting: Batches made before they are asked for, at most.
        reason: The sentence for the user.

    Example:
        >>> Queue(2, 3, "").batches
        5
    """

    workers: int
    waiting: int
    reason: str

    @property
    def batches(self) -> int:
        """In flight at once."""
        return self.workers + self.waiting


def bounded(dataset: Any, batch_bytes: int, room: int) -> Queue | None:
    """The queue that fits into its share of the room; None where the user's own does.

    Args:
        dataset: A ``PyDataset`` of the user's; stays as it is.
        batch_bytes: Of one batch as the data set makes it.
        room: Bytes of the host that the budget leaves.
    """
    if batch_bytes <= 0 or not is_filled_ahead(dataset):
        return None
    waiting = dataset.max_queue_size if dataset.max_queue_size > 0 else dataset.num_batches  # 0: without a bound
    own = None if waiting is None else dataset.workers + waiting
    fits = max(0, int(_SHARE * room)) // batch_bytes
    if own is not None and own <= max(fits, 1):
        return None
    workers = min(dataset.workers, fits // 2) if fits >= _LEAST else 1
    ahead = max(1, fits - workers)
    wanted = "as many batches as there are" if own is None else f"{own} batches, {text(own * batch_bytes)}"
    reason = (
        f"workers={dataset.workers} and max_queue_size={dataset.max_queue_size} hold {wanted}; for this run "
        f"workers={workers} and max_queue_size={ahead}: {text((workers + ahead) * batch_bytes)} of the {text(max(0, room))} "
        "that there are"
    )
    return Queue(workers, ahead, reason)


@contextlib.contextmanager
def applied(dataset: Any, queue: Queue | None) -> Iterator[None]:
    """Inside, the data set has this queue; afterwards the user's own again."""
    if queue is None:
        yield
        return
    before = dataset.workers, dataset.max_queue_size
    dataset.workers, dataset.max_queue_size = queue.workers, queue.waiting
    try:
        yield
    finally:
        dataset.workers, dataset.max_queue_size = before
