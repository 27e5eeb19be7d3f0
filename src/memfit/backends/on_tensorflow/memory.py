"""TensorFlow: how much memory the GPU has for it, and giving memory back."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import tensorflow as tf

from memfit import units
from memfit.backends.on_tensorflow import custom_gradients
from memfit.records import DeviceMemory


def device_memory() -> DeviceMemory | None:
    """The first GPU's memory as TensorFlow sees it; None where TensorFlow has no GPU.

    Listing the devices allocates nothing. With a GPU there, TensorFlow's runtime starts when its allocator is asked, as it
    would at the first operation.
    """
    devices = tf.config.get_visible_devices("GPU")
    if not devices:
        return None
    used = peak = 0
    # Not every allocator keeps statistics: one started by TF_GPU_ALLOCATOR=cuda_malloc_async may not.
    with contextlib.suppress(ValueError, tf.errors.OpError):
        info = tf.config.experimental.get_memory_info("GPU:0")
        used, peak = int(info["current"]), int(info["peak"])
    return DeviceMemory("gpu", _logical_limit(devices[0]) or _own_limit(devices[0].name), used, max(used, peak))


def release() -> None:
    """Collects garbage, graphs of training steps of models that are gone among it, and gives the host heap's free pages back.

    TensorFlow's GPU allocator never shrinks and cannot be told to; what it holds is free for the next step. Nothing that the
    user may still use is cleared: no session state, no compiled function.
    """
    custom_gradients.forget_training_steps()


def _logical_limit(device: Any) -> int | None:
    """The limit that the user set on the GPU, in bytes; None where there is none."""
    configuration = tf.config.get_logical_device_configuration(device)
    limit = configuration[0].memory_limit if configuration else None
    return int(limit * units.MIB) if limit else None


@functools.cache
def _own_limit(name: str) -> int:
    """What TensorFlow takes of a GPU by itself: from the card's total where NVML tells it, else by asking a session."""
    device = next(device for device in tf.config.get_visible_devices("GPU") if device.name == name)
    total = _nvml_total(str(tf.config.experimental.get_device_details(device).get("device_name")))
    return _session_limit() if total is None else _less_reserve(total)


def _less_reserve(total: int) -> int:
    """A card's bytes less what TensorFlow leaves to the driver and the libraries.

    TensorFlow's logs ("Created device ... with N MB memory") say 13949 of 15360 MiB on a T4, 4722 of 6144 on a GTX 1060,
    38276 of 40960 on an A100. The reserve taken here is a little larger than each of these.
    """
    return max(total // 2, total - 1536 * units.MIB - total * 3 // 100)


def _nvml_total(device_name: str) -> int | None:
    """The bytes of the card of that name, the smallest where several are alike; None where NVML does not know it."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        totals = [
            int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            for handle, name in zip(handles, names, strict=True)
            if (name.decode() if isinstance(name, bytes) else name) == device_name
        ]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return min(totals, default=None)


def _session_limit() -> int:
    """The limit of the GPU allocator as a session reports it: exact, at the price of a second set of device objects."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        return int(next(d.memory_limit_bytes for d in session.list_devices() if d.device_type == "GPU"))
