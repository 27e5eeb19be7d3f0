"""The bound on host memory on PyTorch: room for the code that oneDNN makes beside tensors that find none.

oneDNN makes machine code for the shapes of a convolution when it meets them first. Where no page is left for that, it is either
written to address 0, or fails, and then so does all that the thread has oneDNN make from there on, with memory or without:
"could not create a primitive" (seen with PyTorch 2.13). A step that ran out of memory in a tensor can be undone; that cannot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memfit.backends.host_bound import HostBound
from memfit.units import MIB

_CODE = 8 * MIB
"""Above the bound for operators that may make code. Where tensors of theirs have taken half of it, none begins any more."""

_NEW = 3
"""Steps from a new plan on in which operators may meet their shapes first: later ones are spared the time that this takes."""

_MAKE_CODE = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("convolution", "convolution_backward", "mkldnn_convolution", "mm", "addmm", "bmm", "baddbmm")
)


class TorchHostBound(HostBound):
    """See ``HostBound``; tensors fail before oneDNN's code does."""

    def __init__(self, most_bytes: int) -> None:
        self._steps = 0
        super().__init__(most_bytes)

    def start_over(self) -> None:
        self._steps = 0
        super().start_over()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        self._steps += 1
        # torch.compile gives up for good what it meets first inside a mode.
        watches = self._steps <= _NEW and not self.is_step_compiled
        watching = _RoomForCode(self) if watches else contextlib.nullcontext()
        with super().applied(), watching:
            yield


class _RoomForCode(TorchDispatchMode):
    """Raises the bound around operators that may make code."""

    def __init__(self, bound: HostBound) -> None:
        super().__init__()
        self._bound = bound

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in _MAKE_CODE:
            return func(*args, **kwargs or {})
        with self._bound.raised(_CODE):
            return func(*args, **kwargs or {})
