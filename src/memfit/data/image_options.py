"""What a user may ask of an image pipeline, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

from memfit import errors
from memfit.data.pipeline_options import PipelineOptions, is_number, require_choice, require_integer

LABEL_MODES = ("int", "categorical", "binary", None)
CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
CACHES = ("auto", "memory", "disk", None)
INTERPOLATIONS = ("bilinear", "nearest", "bicubic")


@dataclasses.dataclass(frozen=True)
class ImageOptions(PipelineOptions):
    """The checked options of ``image_folder``; its docstring explains them.

    Raises:
        ArgumentError: An option cannot work.
    """

    image_size: tuple[int, int] = (150, 150)
    label_mode: str | None = "int"
    color_mode: str = "rgb"
    interpolation: str = "bilinear"
    rescale: float | None = None
    max_broken: int | None = None
    mask_values: tuple[int, ...] | None = None
    augmentation: Any = None
    training: bool = True
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", _image_size(self.image_size))
        require_choice("label_mode", self.label_mode, LABEL_MODES)
        require_choice("color_mode", self.color_mode, tuple(CHANNELS))
        require_choice("interpolation", self.interpolation, INTERPOLATIONS)
        require_choice("cache", self.cache, CACHES)
        if self.max_broken is not None:
            require_integer("max_broken", self.max_broken, least=0)
        if self.mask_values is not None:
            _check_mask_values(self.mask_values)
        if self.rescale is not None and not (is_number(self.rescale) and math.isfinite(self.rescale) and self.rescale):
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


def _check_mask_values(values: Any) -> None:
    whole = isinstance(values, tuple) and all(isinstance(value, numbers.Integral) for value in values)
    if not whole or not values or len(set(values)) != len(values) or not all(0 <= value <= 255 for value in values):
        raise errors.ArgumentError(
            "`mask_values` must be different numbers from 0 to 255, such as (0, 255): the value of each class in the masks. "
            f"Received: mask_values={values!r}"
        )
