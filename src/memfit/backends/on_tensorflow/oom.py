"""What an out-of-memory error looks like on TensorFlow: the one place that knows."""

from __future__ import annotations

import re

import tensorflow as tf

from memfit.backends import error_chain

# What TensorFlow, its GPU runtime and XLA write where an allocation failed, and nowhere else.
_FAILED_ALLOCATION = re.compile(
    r"\bOOM when allocating"
    r"|failed to allocate (?:memory|request for)"
    r"|(?:CUDA|HIP|hip)_?ERROR_?OUT_?OF_?MEMORY"
    r"|cudaErrorMemoryAllocation"
    r"|out of memory (?:while trying to )?allocat"
    r"|RESOURCE_EXHAUSTED: Out of memory"
    r"|Dst tensor is not initialized"
    r"|cuda_?malloc(?:_?async)?\b.{0,80}\bfailed"
    r"|CU(?:BLAS|DNN|SOLVER|SPARSE|FFT)_(?:STATUS_)?ALLOC_FAILED"
    r"|Status: out of memory"
    r"|std::bad_alloc",
    re.IGNORECASE | re.DOTALL,
)

# Words that mean memory when the status is "resource exhausted", and may be anybody's data elsewhere. The name of Python's
# error is there because TensorFlow turns a MemoryError inside ``tf.py_function`` into this status.
_OUT_OF_MEMORY = re.compile(r"\b(?:ran )?out of memory\b|\bMemoryError\b|\bUnable to allocate\b", re.IGNORECASE)

# Kernels, copies between devices and compilers raise different classes when an allocation fails.
_CLASSES = (
    tf.errors.ResourceExhaustedError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that memory ran out.

    A text alone proves nothing: only errors that TensorFlow raised are read, so a user's ValueError that quotes one is not
    one. Python's and NumPy's MemoryError counts.
    """
    return any(_says_memory(link) for link in error_chain.links(error))


def _says_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, _CLASSES):
        return False
    message = str(error)
    if _FAILED_ALLOCATION.search(message) is not None:
        return True
    return isinstance(error, tf.errors.ResourceExhaustedError) and _OUT_OF_MEMORY.search(message) is not None
