"""What TensorFlow's own kernels take for themselves on a CPU while they run; oneDNN's take next to nothing."""

from __future__ import annotations

import math
from typing import Any

from memfit.backends.on_tensorflow import heap


def scratch_bytes(op: Any) -> int:
    """Bytes of a graph operation's kernel, beside its inputs and outputs; 0 where its shapes are not known."""
    if op.type != "MaxPoolGrad" or heap.has_onednn() or not op.inputs[1].shape.is_fully_defined():
        return 0
    # It looks for each maximum again, and keeps an int64 of where it was.
    return 8 * math.prod(op.inputs[1].shape)
