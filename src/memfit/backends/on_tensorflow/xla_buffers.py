"""The buffers that XLA plans for a compiled TensorFlow function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def compiled_bytes(function: Callable[..., Any], specs: Sequence[Any]) -> int | None:
    """Bytes that a call takes beside the variables that it captures: temporaries, outputs and its own arguments.

    The function is compiled, which takes seconds and some 50 to 200 MiB of host memory, and not run.

    Args:
        function: A function of tensors.
        specs: A ``tf.TensorSpec`` for each of its arguments.

    Returns:
        The sum over XLA's buffer assignment, or None where this TensorFlow does not hand it out or XLA cannot compile the
        function.
    """
    try:
        # Not public; where it is missing, nothing is known.
        from tensorflow.compiler.xla.service import hlo_pb2
    except ImportError:
        return None
    compiled = tf.function(function, autograph=False, jit_compile=True)
    try:
        serialized = compiled.experimental_get_compiler_ir(*specs)(stage="optimized_hlo_proto_serialized")
    except (ValueError, TypeError, tf.errors.OpError):
        return None
    allocations = hlo_pb2.HloProto.FromString(serialized).buffer_assignment.buffer_allocations
    planned = sum(a.size for a in allocations if not (a.is_entry_computation_parameter or a.is_constant))
    arguments = sum(spec.dtype.size * spec.shape.num_elements() for spec in specs)
    return int(planned + arguments)
