"""``python protected.py SCRIPT [ARGS]``: the script with its ``fit``, ``evaluate`` and ``predict`` going through memfit."""

from __future__ import annotations

import functools
import runpy
import sys
import threading
from collections.abc import Callable
from typing import Any

import keras

import memfit

_inside = threading.local()


def through(ours: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Keras' method, which memfit itself calls in the end, behind memfit's function of the same name."""

    @functools.wraps(plain)
    def called(model: Any, *arguments: Any, **keywords: Any) -> Any:
        if getattr(_inside, "memfit", False):
            return plain(model, *arguments, **keywords)
        _inside.memfit = True
        try:
            return ours(model, *arguments, **keywords)
        finally:
            _inside.memfit = False

    return called


def main() -> None:
    """Runs the script."""
    for name in ("fit", "evaluate", "predict"):
        setattr(keras.Model, name, through(getattr(memfit, name), getattr(keras.Model, name)))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
