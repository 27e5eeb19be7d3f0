"""Keras' optimizers from inside: their slots, learning rates and what is shared between two of them.

The rule of ``keras_seam`` holds here too: each private name has a test in ``tests/contract/test_keras_seam.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras

from memfit.backends import keras_saving
from memfit.backends.keras_seam import remove_attribute, set_attribute


def optimizer_index(optimizer: Any, variable: Any) -> int:
    """The place of a variable among those that the optimizer was built for."""
    return int(optimizer._get_variable_index(variable))


def optimized_variables(optimizer: Any) -> list[Any]:
    """The variables that the optimizer was built for, in order."""
    return list(optimizer._trainable_variables)


def adam_moments(optimizer: Any) -> list[tuple[Any, Any] | None]:
    """The variables of the first and the second moment of each weight of a built ``keras.optimizers.Adam``."""
    pairs = zip(optimizer._momentums, optimizer._velocities, strict=True)
    return [None if first is None else (first, second) for first, second in pairs]


_PROGRESS = ("_iterations", "_learning_rate")
_OPTIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
_SLOTS = ("use_ema", "ema_momentum", "ema_overwrite_frequency", "gradient_accumulation_steps")
_SLOT_LISTS = ("_model_variables_moving_average", "_accumulated_gradients")


def slots_to_come(optimizer: Any, rank: int) -> int:
    """How many slots of a variable's own shape an optimizer that is not built will create for one of so many axes.

    Found on a copy and a tiny variable, so that nothing is allocated. 0 where the copy cannot be made.
    """
    try:
        with keras_saving.no_imports():
            twin = type(optimizer).from_config(optimizer.get_config())
        before = len(twin.variables)
        twin.build([keras.Variable(keras.ops.zeros((1,) * rank))])
    except Exception:  # noqa: BLE001 - an optimizer of the user's own, of which nothing is known then
        return 0
    return sum(len(variable.shape) == rank for variable in twin.variables[before:]) if rank else 0


@contextlib.contextmanager
def applying_in(optimizer: Any, surroundings: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, each of the optimizer's updates runs in a context of its own; such blocks may lie in one another."""
    apply, own = optimizer.apply, vars(optimizer).get("apply")

    def surrounded(*arguments: Any, **keywords: Any) -> Any:
        with surroundings():
            return apply(*arguments, **keywords)

    set_attribute(optimizer, "apply", surrounded)
    try:
        yield
    finally:
        remove_attribute(optimizer, "apply")
        if own is not None:
            set_attribute(optimizer, "apply", own)


_BY_ELEMENT = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "RMSprop")
"""Keras' own optimizers whose update of all weights at once makes temporary arrays of them all, and computes each element by
itself, so that it may go group by group: not Nadam, which counts its calls, nor SGD, which makes none."""


def updates_all_at_once(optimizer: Any) -> bool:
    """Whether the optimizer updates all weights in one call, as ``updating_in_groups`` can take apart."""
    kind = type(getattr(optimizer, "inner_optimizer", optimizer))
    return (
        hasattr(kind, "_parallel_update_step") and kind.__module__.startswith("keras.") and kind.__name__ in _BY_ELEMENT
    )


@contextlib.contextmanager
def updating_in_groups(optimizer: Any, group_bytes: int) -> Iterator[None]:
    """Inside, the temporary arrays of an update are those of a group of weights, or of some rows of a larger one.

    Args:
        optimizer: One of which ``updates_all_at_once`` is true, built.
        group_bytes: Of the weights of a group.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    update = inner._backend_update_step

    def in_groups(gradients: list[Any], variables: list[Any], learning_rate: Any) -> None:
        group: list[int] = []

        def update_group() -> None:
            if group:
                update([gradients[i] for i in group], [variables[i] for i in group], learning_rate)
            group.clear()

        for index, gradient in enumerate(gradients):
            if gradient.nbytes > group_bytes:
                _update_rows(inner, update, gradient, variables[index], learning_rate, group_bytes)
                continue
            if sum(gradients[i].nbytes for i in group) + gradient.nbytes > group_bytes:
                update_group()
            group.append(index)
        update_group()

    set_attribute(inner, "_backend_update_step", in_groups)
    try:
        yield
    finally:
        remove_attribute(inner, "_backend_update_step")


def is_updating_in_groups(optimizer: Any) -> bool:
    """Whether this is inside ``updating_in_groups`` for the optimizer."""
    return "_backend_update_step" in vars(getattr(optimizer, "inner_optimizer", optimizer) or object)


def _update_rows(
    optimizer: Any, update: Callable[..., None], gradient: Any, variable: Any, learning_rate: Any, most_bytes: int
) -> None:
    """Updates some rows of a weight after the other: meanwhile it and its slots hold views of them."""
    index = optimizer_index(optimizer, variable)
    lists = [held for held in vars(optimizer).values() if isinstance(held, list) and len(held) > index]
    slots = [held[index] for held in lists if isinstance(held[index], keras.Variable)]
    holders = [variable, *(slot for slot in slots if slot is not variable and slot.shape == variable.shape)]
    tensors = [holder._value for holder in holders]
    rows = max(1, variable.shape[0] * most_bytes // gradient.nbytes)
    try:
        for start in range(0, variable.shape[0], rows):
            for holder, tensor in zip(holders, tensors, strict=True):
                holder._value = tensor[start : start + rows]
            update([gradient[start : start + rows]], [variable], learning_rate)
    finally:
        for holder, tensor in zip(holders, tensors, strict=True):
            holder._value = tensor


def share_progress(source: Any, target: Any) -> None:
    """Makes iterations, learning rate (variable, schedule or callable) and excluded weights those of another optimizer."""
    for name in _PROGRESS:
        if getattr(target, name) is not getattr(source, name):
            if isinstance(getattr(target, name), keras.Variable):
                target._untrack_variable(getattr(target, name))
            setattr(target, name, getattr(source, name))
    for name in _OPTIONS:
        if hasattr(source, name):
            object.__setattr__(target, name, getattr(source, name))


def share_slots(source: Any, target: Any) -> None:
    """Makes moving averages and accumulated gradients, variables and settings, those of another built optimizer."""
    for name in _SLOTS:
        setattr(target, name, getattr(source, name))
    for name in _SLOT_LISTS:
        if hasattr(source, name):
            setattr(target, name, list(getattr(source, name)))


def learning_rate_of(optimizer: Any) -> Any:
    """The learning rate as the optimizer keeps it: a variable, a schedule or a callable."""
    return optimizer._learning_rate


@contextlib.contextmanager
def replaced_optimizer(model: Any, optimizer: Any) -> Iterator[None]:
    """Inside, another optimizer updates the model: in the place of its own, or inside its ``LossScaleOptimizer``."""
    owner, name = model, "optimizer"
    if hasattr(model.optimizer, "inner_optimizer"):
        owner, name = model.optimizer, "inner_optimizer"
    previous = getattr(owner, name)
    set_attribute(owner, name, optimizer)
    try:
        yield
    finally:
        set_attribute(owner, name, previous)


def hold(variable: Any, value: Any) -> None:
    """Puts a tensor of any shape in the place of a variable's own."""
    variable._value = value
