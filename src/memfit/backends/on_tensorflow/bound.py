"""TensorFlow on a GPU: it takes nearly all of it at the first operation, unless it is told otherwise before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from memfit import units

_ADVICE = (
    "TensorFlow has taken the whole GPU at its first operation, which cannot be undone in this process; other programs find "
    "none of it free. Set TF_FORCE_GPU_ALLOW_GROWTH=true before it starts"
)


@contextlib.contextmanager
def bounded_device(limit_bytes: int | None) -> Iterator[str | None]:
    """Before TensorFlow's first operation: growth, or the limit, for the rest of the process. After it: what is to be said.

    What the user has set himself stays.
    """
    devices = tf.config.get_visible_devices("GPU")
    if not devices or _is_set(devices[0]):
        yield None
        return
    try:
        if limit_bytes is None:
            tf.config.experimental.set_memory_growth(devices[0], True)
            said = "TensorFlow takes memory of the GPU as it needs it"
        else:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=limit_bytes // units.MIB)
            tf.config.set_logical_device_configuration(devices[0], [limit])
            said = f"TensorFlow's allocator is limited to {units.text(limit_bytes)} of the GPU"
    except RuntimeError:  # the runtime has started
        said = _ADVICE
    yield said


def _is_set(device: Any) -> bool:
    if os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", "").lower() in ("true", "1"):
        return True
    if tf.config.get_logical_device_configuration(device):
        return True
    try:
        return bool(tf.config.experimental.get_memory_growth(device))
    except ValueError:
        return False
