"""A plan put on the user's model, and taken off again whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.records import Split


@contextlib.contextmanager
def attached(model: Any, split: Split | None, backend: Backend, *, analysed: bool = False) -> Iterator[None]:
    """Inside, the model's train step is the plan's; afterwards nothing of memfit is on the model.

    Args:
        model: The user's model.
        split: How its batches are split, or None for Keras' own step.
        backend: The current backend.
        analysed: Whether Keras' own step was analysed, so that the backend may have it ready as it was.
    """
    if split is None and not analysed and keras_seam.remat_of(model) is None:
        yield
        return
    detach = backend.attach(model, split)
    try:
        yield
    finally:
        detach()
