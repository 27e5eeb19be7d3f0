"""The half precision of the device that Keras puts PyTorch's tensors on."""

from __future__ import annotations

import keras
import torch

from memfit.backends import half_precision
from memfit.backends.half_precision import HalfPrecision


def of_devices() -> HalfPrecision:
    """What the device computes."""
    device = keras.ops.convert_to_tensor(0).device
    if device.type == "cpu":
        return half_precision.of_this_cpu()
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    capability = half_precision.parsed(torch.cuda.get_device_capability(device)) if nvidia else None
    return half_precision.of_compute_capability(capability)
