"""Bytes that a kernel takes by itself while it runs, which no tensor shows.

Measured kernel by kernel with torch 2.13 on a CPU with AVX-512 (benchmarks/calibration, docs: facts). oneDNN's convolutions
reorder their input and output into its own layout in the forward pass where the layout does not suit its kernels; their
backward passes and MKL's matrix products took nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from memfit.backends.on_torch.live_storages import Workspace

_CONVOLUTION = torch.ops.aten.convolution.default


def for_device(kind: str) -> Workspace:
    """The rules for a device type ("cpu", "cuda", "mps")."""
    return _on_cpu if kind == "cpu" else _nowhere


def _on_cpu(operator: Any, arguments: tuple[Any, ...], result: Any) -> int:
    if operator is not _CONVOLUTION:
        return 0
    return int(arguments[0].untyped_storage().nbytes())


def _nowhere(operator: Any, arguments: tuple[Any, ...], result: Any) -> int:
    return 0
