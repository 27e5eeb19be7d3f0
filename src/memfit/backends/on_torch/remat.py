"""A function that PyTorch computes again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from memfit.backends.protocol import PureFunction


def rematerialized(function: PureFunction, *, compiled: bool) -> PureFunction:
    """The function under ``torch.utils.checkpoint``; the framework's own random numbers are drawn again as they were.

    ``torch.compile`` cannot see through Keras' stateless scopes: in a compiled step the function runs as Python does, and
    what lies around it is compiled.
    """

    def call(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, others = checkpoint(lambda *arguments: function(list(arguments)), *tensors, use_reentrant=False)
        return outputs, [other.detach() for other in others]

    return torch.compiler.disable(call) if compiled else call
