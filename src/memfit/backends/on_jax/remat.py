"""A function that JAX computes again in the backward pass.

On a CPU XLA takes the optimization barriers of ``jax.checkpoint`` out before it removes common subexpressions and orders
operations: the recomputation is merged with the forward pass or runs beside it, and next to nothing is saved (a residual
network: 578 MiB of temporaries plain, 674 so). There the recomputation reads its inputs through a choice that depends on the
upstream gradient and always falls the same way, which the compiler cannot know (288 MiB). ``lax.cond`` saves as much and is
25 times slower, since XLA runs convolutions inside of it on one plain loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from memfit.backends.protocol import PureFunction


def rematerialized(function: PureFunction, *, num_inputs: int) -> PureFunction:
    """The function with a backward pass that keeps its arguments and computes it again.

    Args:
        function: A function of tensors.
        num_inputs: How many of its arguments, from the first, are made by the forward pass.
    """
    again = _waiting(function, num_inputs) if jax.default_backend() == "cpu" else jax.checkpoint(function)

    def call(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, others = again(tensors)
        return outputs, [jax.lax.stop_gradient(other) for other in others]

    return call


def _waiting(function: PureFunction, num_inputs: int) -> Callable[[list[Any]], Any]:
    @jax.custom_vjp
    def run(tensors: list[Any]) -> Any:
        return function(tensors)

    def forward(tensors: list[Any]) -> Any:
        return function(tensors), tensors

    def backward(tensors: list[Any], cotangents: Any) -> tuple[list[Any]]:
        upstream, _ = cotangents
        tensors = [*_after(upstream, tensors[:num_inputs]), *tensors[num_inputs:]]
        places = [place for place, tensor in enumerate(tensors) if jnp.issubdtype(tensor.dtype, jnp.inexact)]

        def outputs_of(floats: list[Any]) -> list[Any]:
            values = list(tensors)
            for place, value in zip(places, floats, strict=True):
                values[place] = value
            return function(values)[0]

        _, pull = jax.vjp(outputs_of, [tensors[place] for place in places])
        (gradients,) = pull(upstream)
        result: list[Any] = [None] * len(tensors)
        for place, gradient in zip(places, gradients, strict=True):
            result[place] = gradient
        return (result,)

    run.defvjp(forward, backward)
    return run


def _after(upstream: list[Any], tensors: list[Any]) -> list[Any]:
    """The tensors, to be had once the upstream gradients are there: no number is more than infinite."""
    floats = [gradient for gradient in upstream if gradient.size and jnp.issubdtype(gradient.dtype, jnp.inexact)]
    never = jnp.zeros((), bool)
    for gradient in floats:
        never = never | (jnp.ravel(gradient)[0].astype("float32") > jnp.inf)
    return [jnp.where(never, jnp.zeros_like(tensor), tensor) for tensor in tensors]
