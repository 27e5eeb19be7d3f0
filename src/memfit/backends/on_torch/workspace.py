"""Bytes that a kernel takes by itself while it runs, which no tensor shows.

Found with torch's memory profiler, operator by operator, on torch 2.13 and a CPU with AVX-512 (docs: facts): of what the
benchmark's models run, pooling backwards alone makes large copies in its kernel, where the gradient that arrives and the
tensors that it kept from the forward pass lie in memory in different orders (channels first, channels last). Other
operators make such copies as tensors, which are counted; oneDNN's convolutions and MKL's products took next to nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from memfit.backends.on_torch.live_storages import Workspace

_MAX_POOLS = (
    torch.ops.aten.max_pool2d_with_indices_backward.default,
    torch.ops.aten.max_pool3d_with_indices_backward.default,
)
_AVERAGE_POOLS = (torch.ops.aten.avg_pool2d_backward.default, torch.ops.aten.avg_pool3d_backward.default)


def for_device(kind: str) -> Workspace:
    """The rules for a device type ("cpu", "cuda", "mps")."""
    return _on_cpu if kind == "cpu" else _nowhere


def _on_cpu(operator: Any, arguments: tuple[Any, ...], result: Any) -> int:
    if operator in _MAX_POOLS:
        return _reordered(arguments[0], (arguments[-1], result))
    if operator in _AVERAGE_POOLS:
        return _reordered(arguments[0], (result,))
    return 0


def _reordered(gradient: Any, others: tuple[Any, ...]) -> int:
    """Bytes of the tensors that lie in another order than the gradient."""
    return sum(other.nbytes for other in others if other.is_contiguous() != gradient.is_contiguous())


def _nowhere(operator: Any, arguments: tuple[Any, ...], result: Any) -> int:
    return 0
