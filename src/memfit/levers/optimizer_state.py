"""Optimizer state in 8 bits: while the model trains, ``EightBitAdam`` stands in for its Adam or AdamW. Not exact.

The stand-in starts from the moments, the iterations and the learning rate of the user's optimizer, whose own float32 moments
are freed meanwhile. Afterwards the user's optimizer is back on the model, the very object, with its moments filled from the
8-bit ones. Learning rate, iterations, moving averages and accumulated gradients are one and the same in both, so that
callbacks which set ``model.optimizer.learning_rate`` work as ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_optimizer, keras_seam
from memfit.backends.protocol import Backend
from memfit.levers.block_code import from_kept, state_bytes, to_kept
from memfit.levers.eight_bit_adam import EightBitAdam, EightBitAdamW
from memfit.levers.replaced import fresh_train_function

SETTING = "adam8bit"
"""What ``Levers.optimizer_state`` says."""

_KEPT = "_memfit_eight_bit_adam"


@dataclasses.dataclass(frozen=True)
class Option:
    """What the lever would do for a model.

    Attributes:
        setting: For ``Levers.optimizer_state``; None where it cannot be pulled or saves nothing.
        saved_bytes: Bytes of state that it saves.
        reason: The finding, as a sentence.
    """

    setting: str | None
    saved_bytes: int
    reason: str


def options(model: Any) -> Option:
    """What the lever would do for a compiled and built model."""
    blocked = blocked_reason(model)
    if blocked is not None:
        return Option(None, 0, blocked)
    saved = saved_bytes(model)
    if saved <= 0:
        return Option(None, 0, "no weight is large enough: moments of fewer than 4096 entries stay float32")
    return Option(SETTING, saved, f"{_adam(model).name}'s moments in 8 bits instead of 32")


def blocked_reason(model: Any) -> str | None:
    """Why the lever cannot be pulled on the model, or None.

    Args:
        model: A compiled and built model.
    """
    adam = _adam(model)
    if adam is None:
        return "the model is not compiled with an optimizer"
    if isinstance(adam, EightBitAdam):
        return "the optimizer keeps its state in 8 bits already"
    if not _is_own_adam(adam):
        return f"{type(adam).__name__} is not Keras' Adam or AdamW, whose moments alone memfit keeps in 8 bits"
    if adam.amsgrad:
        return "amsgrad keeps the largest second moments ever seen, which rounding would push up a little every time"
    if keras.config.is_nnx_enabled():
        return "Keras keeps its variables in Flax NNX, where an optimizer cannot be exchanged"
    if keras_seam.is_distributed(model):
        return "the model is distributed over several devices, where 8-bit state was not tried"
    if not adam.built:
        return "the optimizer is not built"
    return None


def saved_bytes(model: Any) -> int:
    """Bytes of optimizer state that the lever saves.

    Args:
        model: A compiled and built model without a ``blocked_reason``.
    """
    saved = 0
    for pair in keras_optimizer.adam_moments(_adam(model)):
        if pair is not None:
            width = 2 if keras_seam.dtype_name(pair[0]) in ("bfloat16", "float16") else 4
            saved += 2 * width * math.prod(pair[0].shape) - state_bytes(pair[0].shape)
    return saved


@contextlib.contextmanager
def attached(model: Any, setting: str, backend: Backend, *, trains: bool = False) -> Iterator[None]:
    """Inside, an ``EightBitAdam`` is the model's optimizer; afterwards the user's is, with its moments.

    Train steps and analyses see it. It goes around ``executing.attached``, which must come off first.

    Args:
        model: A compiled and built model without a ``blocked_reason``.
        setting: ``SETTING``.
        backend: The current backend.
        trains: Whether the model is trained inside. Otherwise no moment is converted, and the user's are exactly what
            they were: what an analysis wants.

    Raises:
        ValueError: The setting is unknown or the model cannot have it.
    """
    _check(model, setting)
    adam = _adam(model)
    stand_in = _stand_in(model, adam, backend)
    with contextlib.ExitStack() as stack:
        stack.callback(_keep, model, adam, stand_in)
        stack.callback(_give_back, adam, stand_in, backend, converted=trains)
        _take_over(adam, stand_in, backend, converted=trains)
        stack.enter_context(keras_optimizer.replaced_optimizer(model, stand_in))
        stack.enter_context(fresh_train_function(model, backend))
        yield


def _check(model: Any, setting: str) -> None:
    if setting != SETTING:
        raise ValueError(f"The setting of the optimizer state must be {SETTING!r}. Received: setting={setting!r}.")
    reason = blocked_reason(model)
    if reason is not None:
        raise ValueError(
            f"The optimizer state cannot be kept in 8 bits: {reason}. Received: optimizer={model.optimizer!r}. "
            "Leave out the lever."
        )


def _adam(model: Any) -> Any:
    """The optimizer that updates the weights: the inner one of a ``LossScaleOptimizer``. None where there is none."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _is_own_adam(adam: Any) -> bool:
    """Whether it is Keras' Adam or AdamW, not a user's subclass of one."""
    return isinstance(adam, keras.optimizers.Adam) and keras_seam.is_of_keras(type(adam))


# The stand-in


def _stand_in(model: Any, adam: Any, backend: Backend) -> EightBitAdam:
    """An 8-bit optimizer with the settings of the user's, its moments empty.

    That of the analysis before is taken: what was compiled with it is then of use.
    """
    settings = _settings(adam)
    known = vars(model).pop(_KEPT, None)
    if known is not None and known[0] is adam and _settings(known[1]) == settings:
        stand_in = known[1]
        keras_optimizer.share_progress(adam, stand_in)
        return stand_in
    kind = EightBitAdamW if isinstance(adam, keras.optimizers.AdamW) else EightBitAdam
    stand_in = kind(learning_rate=0.0, **settings)
    keras_optimizer.share_progress(adam, stand_in)
    variables = keras_optimizer.optimized_variables(adam)
    stand_in.build_with(variables, created=lambda variable: _empty(variable, backend))
    keras_optimizer.share_slots(adam, stand_in)
    return stand_in


_SETTINGS = (
    "name",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "loss_scale_factor",
    "beta_1",
    "beta_2",
    "epsilon",
)


def _settings(optimizer: Any) -> dict[str, Any]:
    return {name: getattr(optimizer, name) for name in _SETTINGS}


def _keep(model: Any, adam: Any, stand_in: EightBitAdam) -> None:
    keras_seam.set_attribute(model, _KEPT, (adam, stand_in))


def _take_over(adam: Any, stand_in: EightBitAdam, backend: Backend, *, converted: bool) -> None:
    """Fills the stand-in's moments, and empties the user's where they are converted; one weight at a time."""
    for pair, moments in zip(keras_optimizer.adam_moments(adam), stand_in.moments, strict=True):
        if moments is None or pair is None:
            continue
        if converted:
            values = to_kept([_read(variable) for variable in pair])
        else:
            values = [np.zeros(v.shape, keras_seam.dtype_name(v)) for v in moments.variables]
        for variable, value in zip(moments.variables, values, strict=True):
            backend.hold(variable, value)
        for variable in pair if converted else ():
            _empty(variable, backend)


def _give_back(adam: Any, stand_in: EightBitAdam, backend: Backend, *, converted: bool) -> None:
    """Fills the user's moments that were emptied from the stand-in's, which are emptied; one weight at a time."""
    rate = keras_optimizer.learning_rate_of(stand_in)
    if rate is not keras_optimizer.learning_rate_of(adam):
        adam.learning_rate = rate
    for pair, moments in zip(keras_optimizer.adam_moments(adam), stand_in.moments, strict=True):
        if moments is None or pair is None:
            continue
        if converted and any(_read(variable).size == 0 for variable in pair):
            for variable, value in zip(pair, _moments(moments.variables, pair[0].shape), strict=True):
                backend.hold(variable, value)
        for variable in moments.variables:
            _empty(variable, backend)


def _moments(variables: list[Any], shape: Any) -> list[np.ndarray]:
    try:
        return from_kept([_read(variable) for variable in variables], shape)
    except (RuntimeError, TypeError, ValueError):
        # A step that fails on JAX takes the state that was donated to it along, the weights as well.
        return [np.zeros(shape, "float32")] * 2


def _empty(variable: Any, backend: Backend) -> None:
    backend.hold(variable, np.zeros((0,), keras_seam.dtype_name(variable)))


def _read(variable: Any) -> np.ndarray:
    """What a variable holds."""
    return np.asarray(keras.ops.convert_to_numpy(variable.value))
