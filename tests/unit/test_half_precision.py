"""What devices say of themselves, as recorded from real ones, and what memfit makes of it."""

from __future__ import annotations

import pytest

from memfit.backends.half_precision import HalfPrecision, of_compute_capability, of_cpu, parsed, weakest

SAPPHIRE_RAPIDS = (
    "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8\nbugs\t\t:\n"
)
ZEN_4 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512vbmi avx512_bf16 clzero\n"
SKYLAKE = "processor\t: 0\nvmx flags\t: vnmi\nflags\t\t: fpu sse2 avx2 avx512f avx512dq\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp sve i8mm bf16 dgh rng\n"
GRAVITON_2 = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimddp ssbs\n"


@pytest.mark.parametrize(
    ("cpuinfo", "dtype", "said"),
    [
        (SAPPHIRE_RAPIDS, "bfloat16", "amx_bf16"),
        (ZEN_4, "bfloat16", "avx512_bf16"),
        (GRAVITON_3, "bfloat16", "the CPU has bf16"),
        (SKYLAKE, None, "none of"),
        (GRAVITON_2, None, "none of"),
        ("", None, "none of"),
    ],
)
def test_a_cpu_by_its_flags(cpuinfo: str, dtype: str | None, said: str) -> None:
    found = of_cpu(cpuinfo)
    assert found.dtype == dtype
    assert said in found.reason


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        ("T4", "7.5", "float16"),
        ("V100", (7, 0), "float16"),
        ("A100", (8, 0), "bfloat16"),
        ("L4", "8.9", "bfloat16"),
        ("H100", "9.0", "bfloat16"),
        ("B200", (10, 0), "bfloat16"),
        ("P100", (6, 0), None),
        ("K80", "3.7", None),
        ("MI250", "gfx90a", None),
        ("an accelerator that tells nothing", None, None),
    ],
)
def test_a_gpu_by_its_compute_capability(device: str, capability: object, dtype: str | None) -> None:
    assert of_compute_capability(parsed(capability)).dtype == dtype, device


def test_devices_that_differ_share_nothing() -> None:
    t4, a100 = HalfPrecision("float16", "T4"), HalfPrecision("bfloat16", "A100")
    assert weakest([t4, t4]) == t4
    assert weakest([a100, t4]).dtype is None
