"""Levers on a model, in the order in which they go over one another, and off again whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.levers import grouped_update, optimizer_state, precision, remat, without_xla
from memfit.records import Levers


@contextlib.contextmanager
def pulled(model: Any, levers: Levers, backend: Backend, *, trains: bool = False) -> Iterator[None]:
    """Inside, the levers are on the model: analyses, gradients and train steps see them. Afterwards nothing is left.

    It goes around ``executing.attached``, which must come off first.

    Args:
        model: A built and compiled model.
        levers: What to pull; none leaves the model alone.
        backend: The current backend.
        trains: Whether the model is trained inside, and not only analysed.

    Raises:
        ValueError: The setting is not one of this model.

    Example:
        >>> import keras
        >>> from memfit import backends
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> with pulled(model, Levers(), backends.current()):
        ...     pass
    """
    with contextlib.ExitStack() as stack:
        if levers.xla_off:
            stack.enter_context(without_xla.attached(model, backend))
        if levers.grouped_update:
            stack.enter_context(grouped_update.attached(model, backend))
        # The optimizer next, as float16 scales the loss around it; segments last: they are traced with their dtypes.
        if levers.optimizer_state is not None:
            stack.enter_context(optimizer_state.attached(model, levers.optimizer_state, backend, trains=trains))
        if levers.precision is not None:
            stack.enter_context(precision.attached(model, levers.precision, backend))
        if levers.remat is not None:
            stack.enter_context(remat.attached(model, levers.remat, backend))
        if levers.own_pages:
            stack.enter_context(keras_seam.marked_with_own_pages(model))
        yield
