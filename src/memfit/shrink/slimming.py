"""``memfit.shrink.slim``: the same model, narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.reporting.console import say
from memfit.shrink import anatomy, rebuilding, selection


def slim(model: Any, width: float | Mapping[str, float] = 0.5, *, importance: str = "l2", verbose: int = 1) -> Any:
    """A new model with fewer filters, units and heads; the channels that matter most keep their weights.

    Channels that belong together - across additions, concatenations, Flatten - are kept or removed together. The widths of
    the model's outputs never change, shared layers stay shared, layers of your own stay as they are and are named.

    Args:
        model: A built Sequential or Functional model; it is left as it is.
        width: The share of the channels to keep, or shares by the names of layers. At least one channel of each stays, and
            groups and heads stay whole.
        importance: How channels are ranked: by "l1" or "l2" norms of their weights, or by "gamma", the scales of
            BatchNormalization where there are any.
        verbose: 0 to print nothing.

    Returns:
        The new model, compiled as ``model`` is, with a fresh optimizer.

    Raises:
        ArgumentError: The width is outside (0, 1], or the model is not built or has no graph.

    Example:
        >>> import keras, memfit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> memfit.shrink.slim(model, width=0.5, verbose=0).layers[0].units
        32
    """
    found = anatomy.anatomy(model)
    share = selection.by_name(found, width)
    kept = selection.narrowed(found, share, selection.importance(found, importance))
    smaller = rebuilding.cut(found, kept)
    for line in left_lines(found):
        say(line, quiet=verbose == 0)
    for name in selection.undivided(found, share, kept):
        say(f"memfit: {name} keeps its width: its channels feed groups that would become uneven", quiet=verbose == 0)
    say(
        f"memfit: {model.name} slimmed from {rebuilding.parameters(model):,} to {rebuilding.parameters(smaller):,} parameters",
        quiet=verbose == 0,
    )
    return smaller


def left_lines(found: anatomy.Anatomy) -> list[str]:
    """What is left as it is, a line each."""
    return [f"memfit: {name} is left as it is: {reason}" for name, reason in found.left.items()]
