"""A function that PyTorch computes again in the backward pass."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from memfit.backends import error_chain
from memfit.backends.protocol import PureFunction

_YOUNG = 1
"""The generations of objects that a segment makes."""


def rematerialized(function: PureFunction, *, compiled: bool) -> PureFunction:
    """The function under ``torch.utils.checkpoint``; the framework's own random numbers are drawn again as they were.

    ``torch.compile`` cannot see through Keras' stateless scopes: in a compiled step the function runs as Python does, and
    what lies around it is compiled.

    Keras' tree functions on PyTorch leave cycles that hold the tensors they walked over; a plain step holds these anyway,
    here they are collected before and after (without: a CNN at 1039 MiB, more than its plain 808). The second time the function
    is left by an exception of PyTorch's, as soon as it has made what the backward pass needs.
    """

    def collected(*arguments: Any) -> tuple[list[Any], list[Any]]:
        gc.collect(_YOUNG)
        try:
            return function(list(arguments))
        except Exception as left:
            error_chain.drop_frames(left)  # Keras tells it anew, in a cycle with frames that hold the tensors
            raise
        finally:
            gc.collect(_YOUNG)

    def call(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, others = checkpoint(collected, *tensors, use_reentrant=False)
        return outputs, [other.detach() for other in others]

    return torch.compiler.disable(call) if compiled else call
