"""What a backward pass that finds no memory leaves, ``release`` gives back."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"

import pytest
import torch

from memfit import budgeting
from memfit.backends import host_allocator
from memfit.backends.host_bound import HostBound
from memfit.backends.on_torch import memory
from memfit.units import MIB

SIZE = 4 * MIB
LAYERS = 30


def fail() -> None:
    tensor = torch.ones(SIZE // 4, requires_grad=True)
    for _ in range(LAYERS):
        tensor = torch.tanh(tensor) + torch.sigmoid(tensor)
    loss = tensor.sum()
    bound = HostBound(budgeting.reading().host_bytes + SIZE // 2)
    with pytest.raises(RuntimeError, match="can't allocate memory"), bound.applied():
        loss.backward()


if __name__ == "__main__":
    host_allocator.map_large_blocks()
    torch.ones(1, requires_grad=True).sum().backward()
    memory.release()
    before = budgeting.reading().host_bytes
    fail()
    memory.release()
    left = budgeting.reading().host_bytes - before
    assert left < SIZE, f"{left / MIB} MiB are left"
