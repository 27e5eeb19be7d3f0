"""A convolution of new shapes where not a page is left, and one more with memory again: both find their code."""

from __future__ import annotations

import pytest
import torch

from memfit import budgeting
from memfit.backends import host_allocator
from memfit.backends.on_torch.host_bound import TorchHostBound
from memfit.units import MIB


def tensors(channels: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(2, channels, size, size), torch.ones(channels, channels, 3, 3)


def main() -> None:
    torch.set_num_threads(2)
    torch.ones(4_000_000).add_(1)
    convolve = torch.nn.functional.conv2d
    convolve(*tensors(16, 20))
    some, others = tensors(48, 30), [tensors(channels, 25) for channels in (32, 40, 56)]
    bound = TorchHostBound(budgeting.reading().host_bytes + 200 * MIB)
    bound._limit, bound._next_look = host_allocator.mapped_bytes(), float("inf")
    with bound.applied():
        convolve(*some)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.ones(64 * MIB, dtype=torch.uint8)
    for other in others:
        convolve(*other)


main()
