"""The queue of whole batches that Keras fills for a ``PyDataset`` with workers, made smaller for a run.

The order of the batches stays, so that the result does (``backends/keras_order.py``), but for a data set that changes between
epochs and whose batches Keras would have kept from one to the next: they would have to be held.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_order
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
        reason: The sentence for the user; empty where it is the queue that the user wanted.
        batch_bytes: Of one batch.

    Example:
        >>> Queue(2, 3, "").batches
        5
    """

    workers: int
    waiting: int
    reason: str
    batch_bytes: int = 0

    @property
    def batches(self) -> int:
        """In flight at once."""
        return self.workers + self.waiting


def bounded(dataset: Any, batch_bytes: int, room: int) -> Queue | None:
    """The queue of a run: the user's own where that fits into its share of the room; None where Keras fills none.

    Args:
        dataset: A ``PyDataset`` of the user's; stays as it is.
        batch_bytes: Of one batch as the data set makes it.
        room: Bytes of the host that the budget leaves.
    """
    if batch_bytes <= 0 or not keras_order.is_filled_ahead(dataset):
        return None
    waiting = dataset.max_queue_size if dataset.max_queue_size > 0 else dataset.num_batches  # 0: without a bound
    own = None if waiting is None else dataset.workers + waiting
    fits = max(0, int(_SHARE * room)) // batch_bytes
    if own is not None and own <= max(fits, 1):
        return Queue(dataset.workers, waiting, "", batch_bytes)
    workers = min(dataset.workers, fits // 2) if fits >= _LEAST else 1
    ahead = max(1, fits - workers)
    wanted = "as many batches as there are" if own is None else f"{own} batches, {text(own * batch_bytes)}"
    reason = (
        f"workers={dataset.workers} and max_queue_size={dataset.max_queue_size} hold {wanted}; for this run "
        f"workers={workers} and max_queue_size={ahead}: {text((workers + ahead) * batch_bytes)} of the {text(max(0, room))} "
        "that there are"
    )
    return Queue(workers, ahead, reason, batch_bytes)


@contextlib.contextmanager
def applied(arguments: dict[str, Any], queue: Queue | None, *, looks: bool) -> Iterator[dict[str, Any]]:
    """Gives the arguments of ``fit`` with which the data set of a run has this queue; afterwards it has the user's own again.

    Args:
        arguments: By name.
        queue: From ``bounded``.
        looks: Whether ``fit`` draws a batch before its first epoch.
    """
    dataset = arguments["x"]
    is_carried = keras_order.is_carried_over(dataset, arguments.get("steps_per_epoch"), looks=looks)
    if queue is None or (is_carried and not queue.reason):  # what Keras keeps is not made twice
        yield arguments
        return
    if dataset.num_batches is not None and not (is_carried and keras_order.changes_between_epochs(dataset)):
        fed = keras_order.QueuedDataset(
            dataset,
            workers=queue.workers,
            waiting=queue.waiting,
            class_weight=arguments.get("class_weight"),
            shuffle=bool(arguments.get("shuffle", True)),
        )
        yield {**arguments, "x": fed, "class_weight": None}
        return
    before = dataset.workers, dataset.max_queue_size
    dataset.workers, dataset.max_queue_size = queue.workers, queue.waiting
    try:
        yield arguments
    finally:
        dataset.workers, dataset.max_queue_size = before


def hold_less(arguments: dict[str, Any], queue: Queue | None) -> int:
    """Has one batch of a ``PyDataset`` wait, and no more, for the rest of the run.

    Args:
        arguments: That ``applied`` gave.
        queue: The queue of the run.

    Returns:
        The bytes that it holds less at the most.
    """
    fed = arguments["x"]
    if queue is None or not isinstance(fed, keras_order.QueuedDataset):
        return 0
    return fed.hold_less() * queue.batch_bytes
