"""Zeros that stay zero: masks on weights that every optimizer respects, for as long as a training needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from memfit.errors import ArgumentError
from memfit.shrink.selection import values


def kernels(model: Any) -> list[Any]:
    """The weights that magnitude pruning works on: trainable, of two axes or more."""
    return [weight for weight in model.trainable_variables if len(weight.shape) > 1]


def zero_smallest(model: Any, sparsity: float) -> None:
    """Sets the share of each kernel that is smallest to zero."""
    for weight in kernels(model):
        value = values(weight)
        count = round(sparsity * value.size)
        if count:
            smallest = np.argpartition(np.abs(value).ravel(), count - 1)[:count]
            value = value.copy()
            value.ravel()[smallest] = 0
            weight.assign(value)


def sparsity_of(model: Any) -> float:
    """The share of zeros in a model's kernels."""
    found = [values(weight) for weight in kernels(model)]
    return sum(int((value == 0).sum()) for value in found) / max(1, sum(value.size for value in found))


@contextlib.contextmanager
def masked(model: Any) -> Iterator[Any]:
    """Inside, weights of the model's kernels that are zero stay zero, whatever optimizer trains them.

    A constraint on each variable multiplies by the mask after each update; a constraint of the layer's own comes first.
    Afterwards the model is an ordinary one again. The masks take a byte a weight.

    Args:
        model: A built model; compiled or not.

    Yields:
        The model.

    Raises:
        ArgumentError: The model is not built.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="zeros")])
        >>> model.compile("adam", "mse")
        >>> with memfit.shrink.masked(model):
        ...     _ = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
        >>> float(np.abs(model.layers[0].get_weights()[0]).max())
        0.0
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ArgumentError(
            f"Only a built Keras model has weights to mask. Received: {model!r}. Add a keras.Input as its first layer."
        )
    previous = [(weight, weight.constraint) for weight in kernels(model)]
    _forget_train_function(model)
    try:
        for weight, constraint in previous:
            weight.constraint = _Masked(values(weight) != 0, constraint)
        yield model
    finally:
        for weight, constraint in previous:
            weight.constraint = constraint
        _forget_train_function(model)


class _Masked:
    """A constraint: another's value, with the masked weights at zero."""

    def __init__(self, mask: np.ndarray, own: Callable[[Any], Any] | None) -> None:
        self._mask = keras.ops.convert_to_tensor(mask)
        self._own = own

    def __call__(self, variable: Any) -> Any:
        value = variable if self._own is None else self._own(variable)
        value = keras.ops.convert_to_tensor(value)
        return keras.ops.where(self._mask, value, keras.ops.zeros_like(value))


def _forget_train_function(model: Any) -> None:
    """A train function that was traced knows the constraints of that time."""
    model.train_function = None
