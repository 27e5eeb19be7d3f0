"""What frameworks read from the environment and from what is installed; imports none of them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Mapping

PACKAGES = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax",), "torch": ("torch",)}

SETTINGS = (
    "KERAS_BACKEND",
    "CUDA_VISIBLE_DEVICES",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "TF_GPU_ALLOCATOR",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_USE_LEGACY_KERAS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "PYTORCH_CUDA_ALLOC_CONF",
    "MALLOC_ARENA_MAX",
)
"""Environment variables that change what a framework takes."""

HISTOGRAM_BYTES = 280
"""What TensorBoard takes for each number of a weight while it sorts it into bins: 30 numbers of 8 bytes, and copies (measured:
282 for two million numbers)."""


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A setting that is known to cost memory or to break.

    Attributes:
        what: A sentence.
        cure: What to set.
        serious: Whether it is to be mended in any case.
    """

    what: str
    cure: str
    serious: bool


def versions() -> dict[str, str]:
    """Installed versions of Keras and the frameworks, by name."""
    found = {}
    for name, packages in {"keras": ("keras",), **PACKAGES}.items():
        for package in packages:
            try:
                found[name] = importlib.metadata.version(package)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def troubles(environment: Mapping[str, str], installed: Mapping[str, str], *, has_gpu: bool) -> list[Trouble]:
    """Settings and combinations that are known to be bad.

    Args:
        environment: Like ``os.environ``.
        installed: Of ``versions``.
        has_gpu: Whether there is a GPU to quarrel about.
    """
    found = []
    backend = environment.get("KERAS_BACKEND", "tensorflow")
    if not set(installed) & set(PACKAGES):
        found.append(
            Trouble("No framework is installed.", "Run: pip install 'memfit[torch]', or tensorflow, or jax.", True)
        )
    elif backend in PACKAGES and backend not in installed:
        cure = f"Set KERAS_BACKEND to one of: {', '.join(name for name in PACKAGES if name in installed)}."
        found.append(Trouble(f"Keras will run on {backend}, which is not installed.", cure, True))
    if environment.get("TF_USE_LEGACY_KERAS", "0") not in ("", "0", "False"):
        cure = "Unset it: memfit trains Keras 3 models."
        found.append(Trouble("TF_USE_LEGACY_KERAS puts Keras 2 in the place of tf.keras.", cure, True))
    if "keras" in installed and tuple(map(int, installed["keras"].split(".")[:2])) < (3, 10):
        found.append(
            Trouble(f"Keras {installed['keras']} is older than memfit supports.", "Run: pip install -U keras", True)
        )
    if backend == "tensorflow" and environment.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        cure = "Leave it unset, unless bit-for-bit results across machines matter."
        found.append(Trouble("oneDNN is off: peaks on a CPU differ by up to 20 %, and steps are slower.", cure, False))
    if not has_gpu:
        return found
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        found.append(Trouble("CUDA_VISIBLE_DEVICES hides the GPU.", "Unset it to train on the GPU.", False))
    grows = environment.get("TF_FORCE_GPU_ALLOW_GROWTH", "").lower() in ("1", "true")
    if backend == "tensorflow" and not grows:
        cure = "Set TF_FORCE_GPU_ALLOW_GROWTH=true where others use the GPU too; memfit.fit does so by itself where it can."
        found.append(Trouble("TensorFlow takes nearly the whole GPU at its first operation.", cure, False))
    if backend == "jax" and environment.get("XLA_PYTHON_CLIENT_PREALLOCATE", "").lower() not in ("0", "false"):
        cure = "Set XLA_PYTHON_CLIENT_PREALLOCATE=false, or XLA_PYTHON_CLIENT_MEM_FRACTION=.95 for a GPU of your own."
        found.append(Trouble("JAX takes 75 % of the GPU when it starts, and never more.", cure, False))
    if environment.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        cure = "Unset it: the allocator of the platform is slow, and meant for debugging."
        found.append(Trouble("XLA_PYTHON_CLIENT_ALLOCATOR=platform.", cure, True))
    if backend == "torch" and "expandable_segments:True" not in environment.get("PYTORCH_CUDA_ALLOC_CONF", ""):
        cure = "Set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True where steps fail with free memory left."
        found.append(Trouble("PyTorch's allocator may fragment.", cure, False))
    return found
