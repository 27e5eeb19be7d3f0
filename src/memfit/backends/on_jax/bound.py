"""JAX on a GPU: it takes three quarters of it when its backend starts, unless the environment says otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_SET_BY_USER = (PREALLOCATE, FRACTION, "XLA_PYTHON_CLIENT_ALLOCATOR")

_ADVICE = (
    "JAX has taken three quarters of the GPU as it started, which cannot be undone in this process; other programs find the "
    f"rest free. Set {PREALLOCATE}=false before it starts"
)


@contextlib.contextmanager
def bounded_device(limit_bytes: int | None) -> Iterator[str | None]:
    """Before JAX's backend starts: memory as it is needed. After it, and for a limit: what is to be said.

    JAX takes its limit as a share of the card, which is not known before the start: a limit bounds the plan alone.
    """
    if any(name in os.environ for name in _SET_BY_USER):
        yield None
    elif not _has_started():
        os.environ[PREALLOCATE] = "false"
        yield None
    else:
        yield _ADVICE if jax.default_backend() in ("gpu", "cuda", "rocm") else None


def _has_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", None)
    return True if started is None else bool(started())
