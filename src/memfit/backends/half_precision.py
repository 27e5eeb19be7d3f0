"""Which half precision a device computes in hardware, from what it says of itself. Framework-neutral."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""Linux' words on x86 and, the last, on ARM."""


@dataclasses.dataclass(frozen=True)
class HalfPrecision:
    """What a device computes faster than float32, or at least as fast.

    Attributes:
        dtype: "bfloat16", "float16" or None.
        reason: Why, as a part of a sentence.
    """

    dtype: str | None
    reason: str


TPU = HalfPrecision("bfloat16", "TPUs multiply in bfloat16")


def of_compute_capability(capability: tuple[int, int] | None) -> HalfPrecision:
    """What an NVIDIA GPU computes, by its compute capability; None where it tells none.

    Example:
        >>> of_compute_capability((7, 5))
        HalfPrecision(dtype='float16', reason='GPUs of compute capability 7.5 have tensor cores for float16, none for bfloat16')
    """
    if capability is None:
        return HalfPrecision(None, "the accelerator does not tell a compute capability")
    name = ".".join(map(str, capability))
    if capability >= (8, 0):
        return HalfPrecision("bfloat16", f"GPUs of compute capability {name} have tensor cores for bfloat16")
    if capability >= (7, 0):
        reason = f"GPUs of compute capability {name} have tensor cores for float16, none for bfloat16"
        return HalfPrecision("float16", reason)
    return HalfPrecision(None, f"GPUs of compute capability {name} have no tensor cores")


def of_cpu(cpuinfo: str) -> HalfPrecision:
    """What a CPU computes, from the text of Linux' ``/proc/cpuinfo``; empty where there is none.

    Example:
        >>> of_cpu("flags\\t\\t: fpu avx512f avx512_bf16").dtype
        'bfloat16'
    """
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    words = found.group(1).split() if found else []
    for flag in _CPU_FLAGS:
        if flag in words:
            return HalfPrecision("bfloat16", f"the CPU has {flag}")
    return HalfPrecision(None, f"the CPU has none of {', '.join(_CPU_FLAGS)}")


@functools.cache
def of_this_cpu() -> HalfPrecision:
    """What this machine's CPU computes."""
    try:
        return of_cpu(_CPUINFO.read_text())
    except OSError:
        return of_cpu("")


def parsed(capability: object) -> tuple[int, int] | None:
    """A compute capability as numbers; None where it is none of NVIDIA's.

    Example:
        >>> parsed("7.5"), parsed((8, 0)), parsed("gfx90a")
        ((7, 5), (8, 0), None)
    """
    text = ".".join(map(str, capability)) if isinstance(capability, tuple) else str(capability)
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def weakest(of_devices: list[HalfPrecision]) -> HalfPrecision:
    """What all of some devices compute: that of the first where they agree."""
    first = of_devices[0]
    if all(one.dtype == first.dtype for one in of_devices):
        return first
    return HalfPrecision(None, "the accelerators differ in what they compute")
