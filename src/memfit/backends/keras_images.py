"""The only file that touches Keras' legacy image iterators, which are private in Keras 3 and public as ``tf.keras``."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

_MODULE = "keras.src.legacy.preprocessing.image"
_ITERATORS = ("DirectoryIterator", "DataFrameIterator", "NumpyArrayIterator")

TRANSFORM_ATTRIBUTES = (
    "rotation_range",
    "width_shift_range",
    "height_shift_range",
    "shear_range",
    "zoom_range",
    "channel_shift_range",
    "brightness_range",
    "horizontal_flip",
    "vertical_flip",
    "fill_mode",
    "cval",
    "interpolation_order",
    "preprocessing_function",
    "rescale",
    "samplewise_center",
    "samplewise_std_normalization",
    "featurewise_center",
    "featurewise_std_normalization",
    "zca_whitening",
    "zca_epsilon",
    "mean",
    "std",
)
_METHODS = ("apply_transform", "get_random_transform", "standardize", "random_transform")


@dataclasses.dataclass(frozen=True)
class LegacyIterator:
    """What one of Keras' image iterators reads, and how.

    Attributes:
        kind: Name of its class.
        transform: The generator's attributes, by the names of ``TRANSFORM_ATTRIBUTES``, and ``zca_matrix``.
        changed: What is not Keras' own in it: methods of a subclass, or None.
        iterator: The iterator, whose public attributes hold the rest.
    """

    kind: str
    transform: dict[str, Any]
    changed: str | None
    iterator: Any


def is_legacy_iterator(data: Any) -> bool:
    """Whether ``data`` is an image iterator of Keras', or of a class made from one."""
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(data, module.Iterator)


def described(iterator: Any) -> LegacyIterator:
    """What an iterator of Keras' reads; ``is_legacy_iterator`` holds."""
    module = sys.modules[_MODULE]
    generator = getattr(iterator, "image_data_generator", None)
    changed = None
    if type(iterator) not in [getattr(module, name) for name in _ITERATORS]:
        changed = f"{type(iterator).__name__} is a class of its own"
    elif generator is None:
        changed = "it has no ImageDataGenerator"
    else:
        own = module.ImageDataGenerator
        methods = [
            name
            for name in _METHODS
            if getattr(type(generator), name, None) is not getattr(own, name) or name in vars(generator)
        ]
        if methods:
            changed = f"{type(generator).__name__} has its own {', '.join(methods)}"
    transform = {name: getattr(generator, name, None) for name in TRANSFORM_ATTRIBUTES}
    transform["zca_matrix"] = getattr(generator, "zca_whitening_matrix", None)
    return LegacyIterator(type(iterator).__name__, transform, changed, iterator)
