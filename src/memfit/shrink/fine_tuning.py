"""Training between steps: the data of a call as arguments of ``memfit.fit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from memfit import fitting
from memfit.errors import ArgumentError

_NAMES = ("x", "y", "sample_weight")


def fit_data(data: Any, caller: str) -> dict[str, Any]:
    """``x``, ``y`` and ``sample_weight`` as ``model.fit`` takes them.

    Args:
        data: A tuple ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, or a dataset, generator or loader of batches.
        caller: The name of the call, for the error.

    Raises:
        ArgumentError: There is no data.
    """
    if data is None:
        raise ArgumentError(
            f"memfit.shrink.{caller} needs data. Received: data=None. Pass (x, y) as arrays, or a dataset of batches."
        )
    if isinstance(data, (tuple, list)):
        if not 1 <= len(data) <= len(_NAMES):
            raise ArgumentError(f"`data` is (x, y) or (x, y, sample_weight). Received: a tuple of {len(data)}. Cut it.")
        return dict(zip(_NAMES, data, strict=False))
    return {"x": data}


def tuned(model: Any, data: Mapping[str, Any], fit_arguments: Mapping[str, Any]) -> Any:
    """Trains a model with ``memfit.fit``; returns the history."""
    return fitting.fit(model, **{**data, **fit_arguments})


def check_compiled(model: Any, caller: str) -> None:
    """Raises ArgumentError where the model is not a compiled Keras model."""
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ArgumentError(
            f"memfit.shrink.{caller} trains, so the model must be compiled. Received: {getattr(model, 'name', model)!r}. "
            "Call model.compile(optimizer, loss) first."
        )
