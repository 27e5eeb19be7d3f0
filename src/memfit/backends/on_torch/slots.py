"""PyTorch: variables updated in place, chunk by chunk, and emptied while another optimizer stands in for theirs."""

from __future__ import annotations

from typing import Any

import torch

from memfit.backends.protocol import Chunks, ChunkUpdate


@torch.no_grad()
def update_in_chunks(update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> None:
    """One chunk after the other, each written into its place."""
    values = [variable.value for variable in chunks.variables]
    for number in range(chunks.number):
        where = [slice(None) if part is None else part for part in chunks.slices(number)]
        # A number has no slices.
        parts = [value[part] if value.ndim else value for value, part in zip(values, where, strict=True)]
        piece = gradient[where[0]] if gradient.ndim else gradient
        for part, new in zip(parts, update(piece, piece * piece, parts), strict=True):
            part.copy_(new)


def hold(variable: Any, value: Any) -> None:
    """Replaces what a variable holds by an array of any shape; the tensor object stays the same."""
    tensor = variable.value
    tensor.data = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device).clone()
