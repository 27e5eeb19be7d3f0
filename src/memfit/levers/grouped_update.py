"""The optimizer's update of a group of weights after the other, where the framework updates all of them at once. Exact.

An update of all weights at once makes temporary arrays of all of them: for Adam on PyTorch three to four times the weights,
beside the weights, their gradients and the moments. Each element is computed by itself, so that the order of groups, and of the
rows of a large weight, changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_optimizer
from memfit.backends.protocol import Backend


def is_possible(model: Any, backend: Backend) -> bool:
    """Whether the model's optimizer updates all weights at once, and can be taken apart.

    Args:
        model: A compiled model.
        backend: The current backend.
    """
    return _group_bytes(backend) is not None and keras_optimizer.updates_all_at_once(model.optimizer)


@contextlib.contextmanager
def attached(model: Any, backend: Backend) -> Iterator[None]:
    """Inside, the model's optimizer updates a group of weights after the other.

    Args:
        model: A compiled model.
        backend: The current backend.

    Raises:
        ValueError: Its optimizer does not update all weights at once, or not in a way that is known here.
    """
    group_bytes = _group_bytes(backend)
    if group_bytes is None or not is_possible(model, backend):
        raise ValueError(
            "The optimizer does not update all weights at once, or not as Keras' own do. "
            f"Received: {type(model.optimizer).__name__} on {backend.name}."
        )
    with keras_optimizer.updating_in_groups(model.optimizer, group_bytes):
        yield


def _group_bytes(backend: Backend) -> int | None:
    return backend.step_costs().update_group_bytes
