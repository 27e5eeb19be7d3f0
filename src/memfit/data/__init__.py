"""Pipelines of bounded memory, a loader for each kind of data. Importing this package imports no framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.data.array_source import arrays
    from memfit.data.augmentation import Augmentation
    from memfit.data.image_generator import from_image_data_generator
    from memfit.data.image_pipeline import image_folder
    from memfit.data.image_tables import image_table
    from memfit.data.indexed_source import indexed, tfds
    from memfit.data.table_source import table
    from memfit.data.text_source import text
    from memfit.data.tf_images import images_as_tf_data
    from memfit.data.tfrecord_source import tfrecord

__all__ = [
    "Augmentation",
    "arrays",
    "from_image_data_generator",
    "image_folder",
    "image_table",
    "images_as_tf_data",
    "indexed",
    "table",
    "text",
    "tfds",
    "tfrecord",
]

_MODULE_OF = {
    "Augmentation": "memfit.data.augmentation",
    "arrays": "memfit.data.array_source",
    "from_image_data_generator": "memfit.data.image_generator",
    "image_folder": "memfit.data.image_pipeline",
    "image_table": "memfit.data.image_tables",
    "images_as_tf_data": "memfit.data.tf_images",
    "indexed": "memfit.data.indexed_source",
    "table": "memfit.data.table_source",
    "text": "memfit.data.text_source",
    "tfds": "memfit.data.indexed_source",
    "tfrecord": "memfit.data.tfrecord_source",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
