"""``memfit.shrink.prune``: channels or single weights removed step by step, with training in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.errors import ArgumentError
from memfit.reporting.console import say
from memfit.shrink import anatomy, fine_tuning, masking, rebuilding, selection
from memfit.shrink.slimming import left_lines


def prune(
    model: Any,
    data: Any,
    *,
    sparsity: float = 0.5,
    structured: bool = True,
    steps: int = 4,
    importance: str = "l2",
    **fit_arguments: Any,
) -> Any:
    """A new model with channels removed, or with weights at zero, fine-tuned between the steps by ``memfit.fit``.

    Structured pruning removes whole channels - filters, units, heads - across everything that they are tied to, so that the
    model gets smaller and faster. Unstructured pruning sets single weights to zero and keeps them there while it trains:
    the model takes the same memory and only packs better. What is removed follows a cubic schedule, most of it early
    (Zhu and Gupta, 2017).

    Args:
        model: A built and compiled Sequential or Functional model (unstructured: any); it is left as it is.
        data: To fine-tune on: ``(x, y)``, ``(x, y, sample_weight)`` or a dataset of batches.
        sparsity: The share of the channels of each layer, or of the weights of each kernel, to remove.
        structured: Whether whole channels are removed.
        steps: In how many steps.
        importance: How channels are ranked: "l1", "l2" or "gamma"; single weights go by size.
        **fit_arguments: What else ``memfit.fit`` takes: ``epochs`` after each step, ``batch_size``, ``budget``, ...

    Returns:
        The new model, compiled as ``model`` is: an ordinary Keras model. Train one with zeros on under
        ``memfit.shrink.masked(model)``.

    Raises:
        ArgumentError: The sparsity is outside (0, 1), the model is not built or not compiled, there is no data.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> model.compile("adam", "mse")
        >>> data = np.ones((32, 8), "float32"), np.ones((32, 10), "float32")
        >>> memfit.shrink.prune(model, data, sparsity=0.75, steps=2, verbose=0).layers[0].units
        16
    """
    _check(sparsity, steps)
    fine_tuning.check_compiled(model, "prune")
    arguments = fine_tuning.fit_data(data, "prune")
    shares = [sparsity * (1 - (1 - (step + 1) / steps) ** 3) for step in range(steps)]
    if structured:
        return _structured(model, shares, importance, (arguments, fit_arguments))
    return _unstructured(model, shares, (arguments, fit_arguments))


def _check(sparsity: Any, steps: Any) -> None:
    number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not number or not 0 < sparsity < 1:
        raise ArgumentError(
            f"`sparsity` is the share to remove, between 0 and 1 and neither. Received: sparsity={sparsity!r}. "
            "0.5 removes half."
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ArgumentError(f"`steps` is a whole number from 1. Received: steps={steps!r}.")


_Training = tuple[Mapping[str, Any], Mapping[str, Any]]


def _structured(model: Any, shares: list[float], importance: str, training: _Training) -> Any:
    quiet = training[1].get("verbose") == 0
    found = anatomy.anatomy(model)
    # Layers keep their names from step to step, so their first widths are what the shares are of.
    first = {one.makers: len(one.members) for one in selection.dimensions(found)}
    for line in left_lines(found):
        say(line, quiet=quiet)
    pruned = model
    for number, share in enumerate(shares, 1):
        found = anatomy.anatomy(pruned)
        remaining = _remaining(first, share)
        kept = selection.narrowed(found, remaining, selection.importance(found, importance))
        pruned = rebuilding.cut(found, kept)
        say(
            f"memfit: pruning step {number} of {len(shares)}: {share:.0%} of the channels removed, "
            f"{rebuilding.parameters(pruned):,} parameters left",
            quiet=quiet,
        )
        fine_tuning.tuned(pruned, *training)
    return pruned


def _remaining(first: Mapping[tuple[str, ...], int], share: float) -> Any:
    """The share of what is there now that leaves ``1 - share`` of what was there at first."""

    def remaining(dimension: selection.Dimension) -> float:
        now = len(dimension.members)
        return min(1.0, (1 - share) * first.get(dimension.makers, now) / now)

    return remaining


def _unstructured(model: Any, shares: list[float], training: _Training) -> Any:
    if not model.built:
        raise ArgumentError(f"The model is not built. Received: {model.name!r}. Add a keras.Input as its first layer.")
    quiet = training[1].get("verbose") == 0
    pruned = rebuilding.copied(model)
    for number, share in enumerate(shares, 1):
        masking.zero_smallest(pruned, share)
        say(f"memfit: pruning step {number} of {len(shares)}: {share:.0%} of each kernel at zero", quiet=quiet)
        with masking.masked(pruned):
            fine_tuning.tuned(pruned, *training)
    return pruned
