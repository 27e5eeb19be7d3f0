"""What an out-of-memory error looks like on JAX: the one place that knows."""

from __future__ import annotations

import re

import jax

from memfit.backends import error_chain

# XLA's status is RESOURCE_EXHAUSTED, but the CUDA driver and its libraries report theirs as INTERNAL or UNKNOWN.
_MEMORY = re.compile(
    r"\bout of memory\b"
    r"|\bfailed to allocate (?:request|memory|\d)"
    r"|\b(?:CUDA|HIP)_?ERROR_?OUT_?OF_?MEMORY"
    r"|\bran out of memory in memory space (?:hbm|host)"
    r"|\bATTEMPTING to reserve .{0,80} at the bottom of memory"
    r"|\bCU(?:BLAS|DNN|SOLVER|SPARSE)_STATUS_(?:INTERNAL_ERROR_DEVICE_ALLOCATION|ALLOC)_FAILED"
    r"|\bstd::bad_alloc",
    re.IGNORECASE | re.DOTALL,
)

# What also runs out. Shared memory, vmem and registers belong to one kernel: its tile sizes fill them, not the batch, so a
# smaller batch would hit the same limit and a retry would only hide the real fault.
_OTHER_RESOURCES = re.compile(
    r"shared memory|memory space (?:vmem|smem|sflag|cmem)|registers|message larger than max|quota|rate limit"
    r"|too many open files|no space left",
    re.IGNORECASE,
)

_STATUS = re.compile(r"\s*(?:RESOURCE_EXHAUSTED|Resource exhausted): ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that memory ran out.

    A text alone proves nothing: JAX's own error class is read, and a ValueError or RuntimeError (which some of jaxlib's
    bindings raise, the copy of an array to the device for one) only where it begins with XLA's status. Python's and
    NumPy's MemoryError counts.
    """
    return any(_says_memory(link) for link in error_chain.links(error))


def _says_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    message = str(error)
    from_xla = isinstance(error, jax.errors.JaxRuntimeError) or (
        type(error) in (ValueError, RuntimeError) and _STATUS.match(message) is not None
    )
    return from_xla and _MEMORY.search(message) is not None and _OTHER_RESOURCES.search(message) is None
