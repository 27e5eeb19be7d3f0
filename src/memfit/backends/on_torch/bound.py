"""PyTorch on a GPU: it takes memory as it needs it; a limit can be set at any time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from memfit import units
from memfit.backends.on_torch import memory


@contextlib.contextmanager
def bounded_device(limit_bytes: int | None) -> Iterator[str | None]:
    """Inside, this process takes no more of the GPU than the limit; what was set before is set again afterwards."""
    if limit_bytes is None or memory.device_type() != "cuda":
        yield None
        return
    _, total = torch.cuda.mem_get_info()
    before = memory.memory_fraction()
    fraction = min(before, limit_bytes / total)
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        yield f"PyTorch's allocator is limited to {units.text(int(fraction * total))} of the GPU"
    finally:
        torch.cuda.set_per_process_memory_fraction(before)
