"""The half precision of the devices that JAX sees."""

from __future__ import annotations

import jax

from memfit.backends import half_precision
from memfit.backends.half_precision import HalfPrecision


def of_devices() -> HalfPrecision:
    """What every device of this process computes."""
    return half_precision.weakest([_of_device(device) for device in jax.local_devices()])


def _of_device(device: jax.Device) -> HalfPrecision:
    if device.platform == "cpu":
        return half_precision.of_this_cpu()
    if device.platform == "tpu":
        return half_precision.TPU
    capability = half_precision.parsed(getattr(device, "compute_capability", None))
    return half_precision.of_compute_capability(capability)
