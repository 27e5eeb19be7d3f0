"""Pipelines of bounded memory, a loader for each kind of data. Importing this package imports no framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.data.array_source import arrays
    from memfit.data.image_pipeline import image_folder
    from memfit.data.table_source import table

__all__ = ["arrays", "image_folder", "table"]

_MODULE_OF = {
    "arrays": "memfit.data.array_source",
    "image_folder": "memfit.data.image_pipeline",
    "table": "memfit.data.table_source",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
