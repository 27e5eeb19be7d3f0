"""What an out-of-memory error looks like on PyTorch: the one place that knows."""

from __future__ import annotations

import re

import torch

from memfit.backends import error_chain

# The accelerators' allocators raise torch.OutOfMemoryError; the CPU's, Metal's and the CUDA libraries' RuntimeError.
_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
    r"|enforce fail at \S*(?:alloc_cpu|CPUAllocator)\.cpp"
    r"|\b(?:CUDA|HIP|XPU) out of memory"
    r"|\b(?:CUDA|HIP|XPU) error: out of memory"
    r"|\bMPS backend out of memory"
    r"|^Invalid buffer size: "  # Metal: one buffer larger than the device takes
    r"|\bCU(?:BLAS|DNN|SOLVER|SPARSE)_STATUS_(?:INTERNAL_ERROR_DEVICE_ALLOCATION|ALLOC)_FAILED"
    r"|\bHIPBLAS_STATUS_ALLOC_FAILED|\brocblas_status_memory_error|\bmiopenStatusAllocFailed"
    r"|\bstd::bad_alloc|^bad allocation$"
    r"|could not (?:create|execute) a primitive\b(?! descriptor)",  # oneDNN, for whose code or scratch there is no memory
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that memory ran out.

    Only RuntimeErrors are read for their text, so a user's ValueError that quotes one is not one. Python's and NumPy's
    MemoryError counts. Not counted: the shared memory of one kernel (``OutOfResources`` of Triton), which its tile sizes
    fill and no smaller batch cures, that of data loader workers, and cuDNN's "unable to find an engine", which has other
    causes too, nor oneDNN's "could not create a primitive descriptor", which is about shapes and dtypes.
    """
    return any(_says_memory(link) for link in error_chain.links(error))


def _says_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None
