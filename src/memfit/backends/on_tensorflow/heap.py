"""The C library's allocator, as arithmetic: where TensorFlow on a CPU takes tensors without oneDNN.

While memfit trains, glibc is told to give blocks of a MiB and more pages of their own (``step.attach``), which go back to
the system when they are freed; left to itself it was seen to keep up to three times the tensors' bytes. Smaller blocks lie
on heaps, one a thread, whose freed parts stay resident.
"""

from __future__ import annotations

import os

from memfit.backends import host_allocator
from memfit.backends.on_tensorflow.arena import Arena

_KEPT = 1.6
"""What the heaps keep for each byte of small blocks at their peak: the arena's figure for its small tensors."""


class Heap:
    """The C library's heaps: ``take`` and ``give`` blocks, and count the bytes.

    Attributes:
        live: Bytes of all tensors that are there.
        peak: The highest ``live`` so far.
        resident: The most bytes that were resident at one time.
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.resident = 0
        self._mapped = 0
        self._heaped_peak = 0

    def take(self, num_bytes: int) -> None:
        """A block for a tensor."""
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        if num_bytes >= host_allocator.LARGE_BLOCK:
            self._mapped += num_bytes
        self._heaped_peak = max(self._heaped_peak, self.live - self._mapped)
        self.resident = max(self.resident, self._mapped + int(_KEPT * self._heaped_peak))

    def give(self, _block: None, num_bytes: int) -> None:
        """Frees a tensor of so many bytes."""
        self.live -= num_bytes
        if num_bytes >= host_allocator.LARGE_BLOCK:
            self._mapped -= num_bytes


def has_onednn() -> bool:
    """Whether TensorFlow runs oneDNN's kernels on the CPU."""
    # Not public: TensorFlow's own answer, from its build, the processor and TF_ENABLE_ONEDNN_OPTS.
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def of_this_process() -> type[Arena] | type[Heap]:
    """The allocator that TensorFlow takes tensors on the CPU from: its own arena is that of oneDNN."""
    # oneDNN's allocator, too, can be told to ask the C library.
    system = os.environ.get("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "").lower() in ("1", "true")
    return Arena if has_onednn() and not system else Heap
