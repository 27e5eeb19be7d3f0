"""Where in its data a run is: enough to go on with exactly the samples that are left of an epoch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Position:
    """A place between two batches.

    Attributes:
        seed: What every order comes from.
        epoch: From 0.
        step: Batches of the epoch that are done.
        num_samples: Samples of the data set; a position in another one means nothing.
        batch_size: Samples of a batch; the same goes for it.

    Example:
        >>> Position(**dataclasses.asdict(Position(7, 1, 30, 1000, 32))).step
        30
    """

    seed: int
    epoch: int
    step: int
    num_samples: int
    batch_size: int
