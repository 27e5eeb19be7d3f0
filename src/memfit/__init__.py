"""Keras 3 training that fits in the memory that is there.

``memfit.fit(model, ...)`` is a drop-in for ``model.fit``. Importing memfit imports no framework: Keras, and with it
TensorFlow, JAX or PyTorch, comes with the first call that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit import data, errors, records, shrink
    from memfit.evaluating import evaluate, predict
    from memfit.fitting import budget, fit, plan, profile
    from memfit.protecting import protect
    from memfit.reporting.monitor import MemoryMonitor

__version__ = "0.1.0"

__all__ = [
    "MemoryMonitor",
    "__version__",
    "budget",
    "data",
    "errors",
    "evaluate",
    "fit",
    "plan",
    "predict",
    "profile",
    "protect",
    "records",
    "shrink",
]

_EVALUATING = ("evaluate", "predict")
_FITTING = ("budget", "fit", "plan", "profile")
_NOTEBOOK = ("load_ipython_extension", "unload_ipython_extension")
_MODULES = ("data", "errors", "records", "shrink")


def __getattr__(name: str) -> Any:
    if name in _EVALUATING:
        return getattr(importlib.import_module("memfit.evaluating"), name)
    if name in _FITTING:
        return getattr(importlib.import_module("memfit.fitting"), name)
    if name == "MemoryMonitor":
        return importlib.import_module("memfit.reporting.monitor").MemoryMonitor
    if name == "protect":
        return importlib.import_module("memfit.protecting").protect
    if name in _NOTEBOOK:
        return getattr(importlib.import_module("memfit.notebook"), name)
    if name in _MODULES:
        return importlib.import_module(f"memfit.{name}")
    raise AttributeError(f"module 'memfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
