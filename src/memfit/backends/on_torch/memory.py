"""What PyTorch's allocators say about the accelerator, and how they give memory back."""

from __future__ import annotations

import gc

import torch
from keras import ops

from memfit.backends import host_allocator
from memfit.records import DeviceMemory

_ITEMS_A_THREAD = 2**16
"""Twice what PyTorch gives a thread of an elementwise operator at the least."""


def device_memory() -> DeviceMemory | None:
    """The accelerator that Keras puts its tensors on, or None where that is the CPU."""
    kind = device_type()
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        # What other processes hold there can never be had; what this one's allocator caches can.
        allowed = min(int(total * memory_fraction()), free + reserved)
        return DeviceMemory("gpu", allowed, torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
    if kind == "mps":
        used = torch.mps.current_allocated_memory()
        # Metal keeps no peak; the driver's total, caches included, is the nearest figure from above.
        peak = max(used, torch.mps.driver_allocated_memory())
        return DeviceMemory("gpu", torch.mps.recommended_max_memory(), used, peak)
    return None


def release() -> None:
    """Collects garbage, empties the caching allocators, and gives freed host memory back to the system."""
    kind = device_type()
    _let_failed_graphs_go(kind)
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()
    host_allocator.trim()


def _let_failed_graphs_go(kind: str) -> None:
    """Runs a backward pass of one number: the engine keeps the graph of one that failed until the next
    (https://github.com/pytorch/pytorch/issues/82218; 64 to 120 MiB of an LSTM's were seen)."""
    with torch.inference_mode(False), torch.enable_grad():
        torch.ones(1, device=kind, requires_grad=True).mul(1.0).sum().backward()


def start_threads() -> None:
    """Has the threads for operators started: one that cannot be started later ends the process."""
    torch.ones(_ITEMS_A_THREAD * torch.get_num_threads()).add_(1)


def mapped_block(own_pages: bool) -> int:
    """The size in bytes from which blocks get pages of their own on the CPU while a model trains.

    By itself glibc ends up at its largest. Smaller blocks in pages of their own leave no gaps, and cost page faults each
    time: a U-Net's step in two parts took 309 MiB and 0.82 s instead of 444 MiB and 0.36 s.
    """
    return host_allocator.LARGE_BLOCK if own_pages else host_allocator.LARGEST_HEAP_BLOCK


def device_type() -> str:
    """Where Keras puts new tensors: KERAS_TORCH_DEVICE, a device scope, or the best device there is."""
    return str(ops.convert_to_tensor(0).device.type)


def memory_fraction() -> float:
    """What ``torch.cuda.set_per_process_memory_fraction`` set, where this torch lets it be read."""
    read = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return 1.0 if read is None else float(read())
