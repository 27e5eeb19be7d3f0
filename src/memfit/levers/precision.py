"""Mixed precision on a built model: most layers compute in half precision, weights and outputs stay float32. Not exact.

Each layer that may (``precision_layers``) is given Keras' own policy for the time; the model is not compiled again, so that
metrics, optimizer slots and compile settings stay the user's. Gradients in float16 would vanish: there Keras' dynamic loss
scaling goes around the user's optimizer, slots and all, as ``compile`` would put it around (Micikevicius et al. 2018,
arXiv:1710.03740).

    if precision.blocked_reason(model, spec, backend) is None:
        chosen = precision.setting(backend)                                    # "mixed_bfloat16" or "mixed_float16"
        with precision.attached(model, chosen, backend):
            backend.step_bytes(model, spec, split)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_graph, keras_losses, keras_seam
from memfit.backends.protocol import Backend
from memfit.levers.precision_layers import lowered_layers
from memfit.levers.replaced import fresh_inference, fresh_train_function, replaced_attribute

SETTINGS = ("mixed_bfloat16", "mixed_float16")
"""What ``Levers.precision`` may be: the names of Keras' policies."""

_FEW = 2

_REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)
"""What frameworks raise where a model's own code mixes dtypes."""


def setting(backend: Backend) -> str | None:
    """The precision that the device computes in hardware, as ``Levers`` names it; None where it computes none.

    Args:
        backend: The current backend.
    """
    dtype = backend.half_precision().dtype
    return None if dtype is None else f"mixed_{dtype}"


def blocked_reason(model: Any, spec: Any, backend: Backend, *, precision: str | None = None) -> str | None:
    """Why the model is not trained in half precision, or None.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec. A model without a graph is called on it, as shapes alone.
        backend: The current backend.
        precision: One of ``SETTINGS``; the device's where left out.
    """
    chosen = precision or setting(backend)
    if chosen is None:
        return f"the device computes no half precision in hardware: {backend.half_precision().reason}"
    if keras.config.is_nnx_enabled():
        return "Keras keeps its variables in Flax NNX, where it was not tried"
    if keras_seam.is_distributed(model):
        return "the model is distributed over several devices, where it was not tried"
    if not model.trainable_variables:
        return "the model has no trainable weights"
    if chosen == "mixed_float16" and keras_seam.overrides(model, "train_step"):
        return f"{type(model).__name__} has its own train_step, which may not scale the loss as float16 needs"
    if not any(layer.weights for layer in lowered_layers(model)):
        return "of its layers with weights none is both Keras' own and safe in half precision"
    return _refusal(model, spec, chosen) if keras_graph.graph_of(model) is None else None


def _refusal(model: Any, spec: Any, precision: str) -> str | None:
    """Why a model's own ``call`` does not run with its layers lowered, or None."""
    half = precision.removeprefix("mixed_")
    try:
        with contextlib.ExitStack() as stack:
            _lower(model, precision, stack)
            returned = _output_dtypes(model, spec[0], half)
    except _REFUSALS as error:
        return f"{type(model).__name__}.call mixes float32 with what its layers compute: {str(error).splitlines()[0]}"
    if half in returned:
        return f"{type(model).__name__}.call returns what another layer than its last computes"
    return None


def _output_dtypes(model: Any, x: Any, half: str) -> list[str]:
    """What the model's call returns, by shapes alone; on two samples of zeros where those do not tell the precision."""
    calls = keras_graph.symbolic_calls(lambda inputs: keras_seam.forward(model, inputs, training=True), x)
    found = {id(call.layer): [dtype for _, dtype in call.outputs] for call in calls if not call.inside}
    if any(dtype == half for call in calls for _, dtype in call.outputs):
        return found.get(id(model), [])
    zeros = keras_seam.map_leaves(lambda leaf: np.zeros((_FEW, *leaf.shape[1:]), leaf.dtype), x)
    with keras_seam.preserved_state(model), keras_losses.kept_call_losses(model):
        outputs = keras_seam.forward(model, keras_seam.map_leaves(keras.ops.convert_to_tensor, zeros), training=True)
    return [keras_seam.dtype_name(leaf) for leaf in keras_seam.flatten(outputs)]


@contextlib.contextmanager
def attached(model: Any, precision: str, backend: Backend) -> Iterator[None]:
    """Inside, the model computes in half precision wherever that is safe; afterwards nothing is left.

    Train steps, micro-batched or not, validation, ``backend.gradients`` and the analyses see it. It goes around
    ``remat.attached`` and ``executing.attached``, which must come off first.

    Args:
        model: A built and compiled model without a ``blocked_reason``.
        precision: One of ``SETTINGS``.
        backend: The current backend.

    Raises:
        ValueError: It is none of them.
    """
    if precision not in SETTINGS:
        raise ValueError(f"`precision` must be one of {', '.join(SETTINGS)}. Received: precision={precision!r}.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras_seam.marked_with_precision(model, precision))
        _lower(model, precision, stack)
        if precision == "mixed_float16":
            stack.enter_context(_scaled_loss(model))
        stack.enter_context(fresh_train_function(model, backend))
        stack.enter_context(fresh_inference(model))
        yield


def _lower(model: Any, precision: str, stack: contextlib.ExitStack) -> None:
    """Gives the layers their policy, until the stack unwinds."""
    policy = keras.DTypePolicy(precision)
    for layer in lowered_layers(model):
        stack.callback(setattr, layer, "dtype_policy", layer.dtype_policy)
        layer.dtype_policy = policy


@contextlib.contextmanager
def _scaled_loss(model: Any) -> Iterator[None]:
    """Inside, Keras' dynamic loss scaling is around the optimizer; an optimizer that scales already is left alone."""
    inner = model.optimizer
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        yield
        return
    factor = inner.loss_scale_factor
    try:
        scaled = keras.optimizers.LossScaleOptimizer(inner)  # which takes the inner one's own factor away
        if not inner.built:
            inner.build(model.trainable_variables)
        # The slots are there, and not every optimizer asks before it makes them again.
        with replaced_attribute(inner, "build", lambda variables: None):
            scaled.build(model.trainable_variables)
        with replaced_attribute(model, "optimizer", scaled):
            yield
    finally:
        inner.loss_scale_factor = factor


def lessen_scale(model: Any) -> bool:
    """Halves the loss scale, as a step would whose gradients overflow; False where the loss is not scaled."""
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or not optimizer.built:
        return False
    optimizer.dynamic_scale.assign(keras.ops.multiply(optimizer.dynamic_scale, 0.5))
    return True
