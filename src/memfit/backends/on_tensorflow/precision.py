"""The half precision of the devices that TensorFlow sees."""

from __future__ import annotations

import tensorflow as tf

from memfit.backends import half_precision
from memfit.backends.half_precision import HalfPrecision


def of_devices() -> HalfPrecision:
    """What every visible accelerator computes; of the CPU where there is none."""
    if tf.config.list_logical_devices("TPU"):
        return half_precision.TPU
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return half_precision.of_this_cpu()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capabilities = [half_precision.parsed(one.get("compute_capability")) for one in details]
    return half_precision.weakest([half_precision.of_compute_capability(one) for one in capabilities])
