"""What JAX's allocator says about the accelerator, and how it gives memory back."""

from __future__ import annotations

import gc

import jax

from memfit.backends import host_allocator
from memfit.records import DeviceMemory

_KINDS = {"gpu": "gpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


def device_memory() -> DeviceMemory | None:
    """The first local accelerator, or None on a CPU and where the allocator keeps no statistics."""
    device = jax.local_devices()[0]
    kind = _KINDS.get(device.platform)
    # The "platform" allocator (XLA_PYTHON_CLIENT_ALLOCATOR) has no statistics, or no limit.
    statistics = device.memory_stats() if kind is not None else None
    if kind is None or not statistics or "bytes_limit" not in statistics:
        return None
    used = int(statistics["bytes_in_use"])
    return DeviceMemory(
        kind=kind,
        total_bytes=int(statistics["bytes_limit"]),
        used_bytes=used,
        peak_bytes=int(statistics.get("peak_bytes_in_use", used)),
    )


def release() -> None:
    """Collects garbage, and gives freed host memory back to the system.

    JAX itself has nothing to give: its device allocator keeps its pool for the process' lifetime, and
    ``jax.clear_caches`` would drop the compiled functions of the user's program.
    """
    gc.collect()
    host_allocator.trim()


def forget_programs() -> None:
    """On a CPU, drops what was traced and compiled so far, in the whole process; what is called again is compiled again.

    JAX keeps traces and programs of functions that are gone: 10 to 50 MiB an analysis of a small Transformer, in the memory
    that the analysis is to find room in. On an accelerator it is the host's memory alone, and stays.
    """
    if jax.default_backend() == "cpu":
        jax.clear_caches()
    release()
