"""A function that JAX computes again in the backward pass."""

from __future__ import annotations

from typing import Any

import jax

from memfit.backends.protocol import PureFunction


def rematerialized(function: PureFunction, *, compiled: bool) -> PureFunction:
    """The function under ``jax.checkpoint``, nothing inside kept.

    On a CPU, XLA's default scheduler runs the recomputation early and loses the saving; the steps of this folder are
    compiled without it while a model is rematerialized (``step.compiler_options``).
    """
    del compiled  # the barriers that jax.checkpoint puts around the recomputation cost nothing outside of a compiled step

    def call(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, others = jax.checkpoint(function)(tensors)
        return outputs, [jax.lax.stop_gradient(other) for other in others]

    return call
