"""What a user may ask of any pipeline, checked before anything is read."""

from __future__ import annotations

import dataclasses
import numbers
import os
import random
from typing import Any

from memfit import errors, units

SUBSETS = ("training", "validation", "both")
QUEUE_BYTES = 256 * units.MIB


@dataclasses.dataclass(frozen=True)
class PipelineOptions:
    """The checked options that every loader has.

    Attributes:
        batch_size: Samples of a batch; the last one of an epoch has the rest.
        shuffle: Whether every epoch has an order of its own.
        seed: What every order comes from.
        workers: Threads that make batches; 0 to make each in the thread that asks for it.
        max_queue_size: The most batches made ahead.
        max_queue_bytes: The most bytes of batches made ahead, as a number or a text; one batch is always allowed.

    Raises:
        ArgumentError: An option cannot work.
    """

    batch_size: int = 32
    shuffle: bool = True
    seed: int = 0
    workers: int = 1
    max_queue_size: int = 2
    max_queue_bytes: int = QUEUE_BYTES

    def __post_init__(self) -> None:
        require_integer("batch_size", self.batch_size, least=1)
        require_integer("seed", self.seed, least=0)
        require_integer("workers", self.workers, least=0)
        require_integer("max_queue_size", self.max_queue_size, least=0)
        object.__setattr__(self, "max_queue_bytes", _bytes("max_queue_bytes", self.max_queue_bytes))

    def depth(self, batch_bytes: int) -> int:
        """Batches of so many bytes to make ahead: ``max_queue_size``, or as many as the bytes allow, but one.

        Example:
            >>> PipelineOptions(max_queue_size=4, max_queue_bytes=100).depth(40)
            2
        """
        return min(self.max_queue_size, max(1, self.max_queue_bytes // max(1, batch_bytes)))


@dataclasses.dataclass(frozen=True)
class Division:
    """Which samples are for training and which for validation, as a user asks for it.

    Attributes:
        validation_split: Share of the samples for validation, between 0 and 1, or None for no division.
        subset: "training", "validation", "both", or None together with the share.
        seed: The user's, or None; without one the division is always the same.

    Raises:
        ArgumentError: They do not make sense together.
    """

    validation_split: float | None = None
    subset: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        share, subset = self.validation_split, self.subset
        if subset is not None:
            require_choice("subset", subset, SUBSETS)
        if (share is None) != (subset is None):
            raise errors.ArgumentError(
                "`validation_split` and `subset` belong together: pass both or neither. "
                f"Received: validation_split={share!r}, subset={subset!r}. "
                'subset="both" returns (training, validation).'
            )
        if share is not None and (not is_number(share) or not 0 < share < 1):
            raise errors.ArgumentError(
                f"`validation_split` must be a share between 0 and 1, both excluded. Received: validation_split={share!r}"
            )

    @property
    def seed_of_split(self) -> int:
        """What the division comes from."""
        return 0 if self.seed is None else self.seed

    def check(self, num_training: int, num_validation: int) -> None:
        """Raises ArgumentError where a subset would be empty."""
        if not num_training or not num_validation:
            raise errors.ArgumentError(
                f"`validation_split` leaves no samples for {'training' if num_validation else 'validation'}: of "
                f"{num_training + num_validation} samples {num_validation} go to validation. "
                f"Received: validation_split={self.validation_split!r}"
            )


def seed_or_drawn(seed: int | None) -> int:
    """The seed, or one drawn from Python's ``random``, so that ``keras.utils.set_random_seed`` fixes it."""
    return random.getrandbits(32) if seed is None else seed


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises ArgumentError where the value is none of the choices."""
    if value not in choices:
        raise errors.ArgumentError(f"`{name}` must be one of {choices}. Received: {name}={value!r}")


def require_integer(name: str, value: Any, *, least: int) -> None:
    """Raises ArgumentError where the value is no integer, or below ``least``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise errors.ArgumentError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")


def _bytes(name: str, value: Any) -> int:
    try:
        number = units.parse(value) if isinstance(value, str) else value
    except ValueError as error:
        raise errors.ArgumentError(f"`{name}`: {error}") from None
    require_integer(name, number, least=1)
    return int(number)
