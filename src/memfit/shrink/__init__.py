"""A smaller model, on purpose: advice with numbers, and the tools that follow it. Importing this imports no framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.shrink.advising import advise
    from memfit.shrink.comparing import compare
    from memfit.shrink.distilling import distill
    from memfit.shrink.masking import masked
    from memfit.shrink.pruning import prune
    from memfit.shrink.quantizing import quantize
    from memfit.shrink.slimming import slim

__all__ = ["advise", "compare", "distill", "masked", "prune", "quantize", "slim"]

_MODULE_OF = {
    "advise": "memfit.shrink.advising",
    "compare": "memfit.shrink.comparing",
    "distill": "memfit.shrink.distilling",
    "masked": "memfit.shrink.masking",
    "prune": "memfit.shrink.pruning",
    "quantize": "memfit.shrink.quantizing",
    "slim": "memfit.shrink.slimming",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
