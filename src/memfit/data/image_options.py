"""What a user may ask of an image pipeline, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from typing import Any

from memfit import errors

LABEL_MODES = ("int", "categorical", "binary", None)
CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
INTERPOLATIONS = ("bilinear", "nearest", "bicubic")
SUBSETS = ("training", "validation", "both")


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """The checked options of ``image_folder``; its docstring explains them.

    Raises:
        ArgumentError: An option cannot work.
    """

    image_size: tuple[int, int] = (150, 150)
    batch_size: int = 32
    label_mode: str | None = "int"
    color_mode: str = "rgb"
    interpolation: str = "bilinear"
    rescale: float | None = None
    shuffle: bool = True
    seed: int = 0
    workers: int = 1
    max_queue_size: int = 2
    max_broken: int | None = None
    augmentation: Any = None
    training: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _image_size(self.image_size))
        _require_choice("label_mode", self.label_mode, LABEL_MODES)
        _require_choice("color_mode", self.color_mode, tuple(CHANNELS))
        _require_choice("interpolation", self.interpolation, INTERPOLATIONS)
        _require_integer("batch_size", self.batch_size, least=1)
        _require_integer("seed", self.seed, least=0)
        _require_integer("workers", self.workers, least=1)
        _require_integer("max_queue_size", self.max_queue_size, least=0)
        if self.max_broken is not None:
            _require_integer("max_broken", self.max_broken, least=0)
        if self.rescale is not None and not (_is_number(self.rescale) and math.isfinite(self.rescale) and self.rescale):
            raise errors.ArgumentError(
                "`rescale` must be a number that the values from 0 to 255 are multiplied with, such as 1 / 255, "
                f"or None. Received: rescale={self.rescale!r}"
            )
        if self.augmentation is not None and not callable(self.augmentation):
            raise errors.ArgumentError(
                "`augmentation` must be a memfit.data.Augmentation, a Keras layer or a function of a batch of images. "
                f"Received: augmentation={self.augmentation!r}"
            )
        if self.rescale is not None and getattr(self.augmentation, "rescale", None):
            raise errors.ArgumentError(
                "`rescale` is given twice. "
                f"Received: rescale={self.rescale!r} and {self.augmentation.rescale!r} in `augmentation`. Leave one out."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image in a batch."""
        return (*self.image_size, CHANNELS[self.color_mode])


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_subset(validation_split: float | None, subset: str | None) -> None:
    """Checks that the two are given together and make sense.

    Raises:
        ArgumentError: They do not.
    """
    if subset is not None:
        _require_choice("subset", subset, SUBSETS)
    if validation_split is None and subset is None:
        return
    if validation_split is None or subset is None:
        raise errors.ArgumentError(
            "`validation_split` and `subset` belong together: pass both or neither. "
            f"Received: validation_split={validation_split!r}, subset={subset!r}. "
            'subset="both" returns (training, validation).'
        )
    if not _is_number(validation_split) or not 0 < validation_split < 1:
        raise errors.ArgumentError(
            "`validation_split` must be a share between 0 and 1, both excluded. "
            f"Received: validation_split={validation_split!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise errors.ArgumentError(f"`{name}` must be one of {choices}. Received: {name}={value!r}")


def _require_integer(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise errors.ArgumentError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")


def _image_size(value: Any) -> tuple[int, int]:
    try:
        height, width = value
    except (TypeError, ValueError):
        height = width = None
    if any(not isinstance(side, numbers.Integral) or isinstance(side, bool) or side < 1 for side in (height, width)):
        raise errors.ArgumentError(
            f"`image_size` must be (height, width) in pixels, such as (150, 150). Received: image_size={value!r}"
        )
    return int(height), int(width)
