"""A plan put on the user's model, and taken off again whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends.protocol import Backend
from memfit.records import Split


@contextlib.contextmanager
def attached(model: Any, split: Split | None, backend: Backend) -> Iterator[None]:
    """Inside, the model's train step works in parts; afterwards nothing of memfit is on the model."""
    if split is None:
        yield
        return
    detach = backend.attach(model, split)
    try:
        yield
    finally:
        detach()
