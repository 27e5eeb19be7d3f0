"""The step without XLA, where the model is compiled with it and the framework has kernels of its own. Exact to rounding.

XLA's compiler takes host memory that the step itself does not, for some models the step takes more as well, and for a step in
parts, which has the model twice, the compiler takes more still. Without XLA the framework runs the same operations one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.levers.replaced import fresh_inference, fresh_train_function


def cost(model: Any, backend: Backend) -> float | None:
    """What a step takes more without XLA, relative to the plain step; None where that is no choice.

    Args:
        model: A compiled model.
        backend: The current backend.
    """
    return backend.step_costs().without_xla if keras_seam.is_jitted(model) else None


@contextlib.contextmanager
def attached(model: Any, backend: Backend) -> Iterator[None]:
    """Inside, train, validation and prediction steps are made without XLA; afterwards the model is compiled as it was.

    Args:
        model: A compiled model.
        backend: The current backend.

    Raises:
        ValueError: The model's steps are not compiled with XLA, or its framework runs them in no other way.
    """
    if cost(model, backend) is None:
        raise ValueError(
            "The steps of the model are not compiled with XLA, or cannot do without it. "
            f"Received: jit_compile={model.jit_compile} on {backend.name}."
        )
    with keras_seam.without_jit(model), fresh_train_function(model, backend), fresh_inference(model):
        yield
