"""A convolution of new shapes where not a page is left, and one more with memory again: both find their code."""

from __future__ import annotations

import pytest
import torch

from memfit import budgeting
from memfit.backends.on_torch.host_bound import TorchHostBound
from memfit.units import MIB


def mapped() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * 4096


def convolve(channels: int, size: int = 20) -> None:
    torch.nn.functional.conv2d(torch.ones(2, channels, size, size), torch.ones(channels, channels, 3, 3), padding=1)


def main() -> None:
    torch.set_num_threads(2)
    torch.ones(4_000_000).add_(1)
    convolve(16)
    bound = TorchHostBound(budgeting.reading().host_bytes + 200 * MIB)
    bound._limit, bound._next_look = mapped(), float("inf")
    with pytest.raises(RuntimeError, match="can't allocate memory"), bound.applied():
        convolve(48)
        torch.ones(64 * MIB, dtype=torch.uint8)
    convolve(40, size=25)


main()
