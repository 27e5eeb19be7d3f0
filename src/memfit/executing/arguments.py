"""The arguments of ``memfit.fit``: those of ``model.fit`` as one mapping, checked before anything is touched."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_losses, keras_seam
from memfit.errors import ArgumentError
from memfit.records import Plan

LEVERS = ("inexact_micro_batch", "precision", "optimizer_state")
"""What ``allow`` may name: levers that change the result."""


def bound(model: Any, args: tuple[Any, ...], fit_arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one call of ``model.fit`` by name, defaults filled in.

    Raises:
        ArgumentError: ``model.fit`` takes no such arguments.
    """
    signature = inspect.signature(model.fit)
    try:
        call = signature.bind(*args, **fit_arguments)
    except TypeError as error:
        raise ArgumentError(
            f"{type(model).__name__}.fit does not take these arguments ({error}). Received: "
            f"{', '.join([*(f'argument {i + 1}' for i in range(len(args))), *fit_arguments])}. "
            f"It takes {', '.join(signature.parameters)}; memfit.fit adds budget, plan, allow and micro_batch_size."
        ) from error
    call.apply_defaults()
    named = dict(call.arguments)
    for parameter in signature.parameters.values():  # a fit of the user's own may take more by **kwargs
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name))
    return named


def with_synthetic_data(
    model: Any, arguments: dict[str, Any], shapes: Sequence[tuple[int, ...]] | None = None
) -> dict[str, Any]:
    """The arguments with zeros of the model's input and output shapes as data.

    Args:
        model: A compiled model with symbolic inputs.
        arguments: Of ``fit``; its ``batch_size`` counts.
        shapes: Of one sample of each input, in the model's order; None for those that the model was built with.

    Raises:
        ArgumentError: The model does not know the shapes of its inputs, or ``shapes`` do not fit them.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ArgumentError(
            f"The model has no inputs of known shape. Received: {model.name!r} without data. "
            "Pass x and y (one sample of each is enough), or build it with keras.Input."
        )
    sizes = list(shapes) if shapes else [tuple(tensor.shape[1:]) for tensor in inputs]
    declared = [tuple(tensor.shape[1:]) for tensor in inputs]
    if len(sizes) != len(declared) or not all(map(_is_within, sizes, declared)):
        raise ArgumentError(
            f"The shapes do not fit the model's inputs {declared}. Received: {sizes}. Give one for each input."
        )
    if any(None in shape for shape in sizes):
        raise ArgumentError(
            f"The model's inputs have dimensions of any size: {declared}. Received: no shapes. "
            "Give the largest that will come, as a bound: data of that shape, or `--input-shape` on the command line."
        )
    batch_size = arguments.get("batch_size") or 32
    shape_of = {id(tensor): shape for tensor, shape in zip(inputs, sizes, strict=True)}

    def zeros(tensor: Any) -> np.ndarray:
        # One row seen as many: the batch is as large as asked for and takes no memory.
        shape = shape_of[id(tensor)]
        return np.broadcast_to(np.zeros((1, *shape), tensor.dtype), (batch_size, *shape))

    x = keras_seam.map_leaves(zeros, keras_losses.input_structure(model))
    return {**arguments, "x": x, "y": keras_losses.synthetic_targets(model, x), "batch_size": batch_size}


def _is_within(shape: tuple[int | None, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(b is None or a == b for a, b in zip(shape, declared, strict=True))


def check_keras_model(model: Any) -> None:
    """Raises ArgumentError where the model is not a Keras 3 model."""
    if not isinstance(model, keras.Model):
        raise ArgumentError(
            f"memfit trains Keras 3 models. Received: a {type(model).__module__}.{type(model).__qualname__}. "
            "Pass a keras.Model; with tf.keras, install Keras 3 and import keras instead."
        )


def check_model(model: Any) -> None:
    """Raises ArgumentError where the model is not a compiled Keras model."""
    check_keras_model(model)
    if not model.compiled:
        raise ArgumentError(
            f"The model is not compiled. Received: {model.name!r}. Call model.compile(optimizer, loss) before memfit.fit."
        )


def checked_micro_batch_size(micro_batch_size: Any) -> int | None:
    """The size as an int.

    Raises:
        ArgumentError: It is not a whole number of at least 1.
    """
    if micro_batch_size is None:
        return None
    whole = isinstance(micro_batch_size, numbers.Integral) and not isinstance(micro_batch_size, bool)
    if not whole or int(micro_batch_size) < 1:
        raise ArgumentError(
            "`micro_batch_size` must be a whole number of samples, 1 or more. "
            f"Received: micro_batch_size={micro_batch_size!r}. Leave it out to let memfit find it."
        )
    return int(micro_batch_size)


def checked_allow(allow: Collection[str]) -> frozenset[str]:
    """The allowed levers as a set.

    Raises:
        ArgumentError: One of them is not a lever.
    """
    names = frozenset([allow] if isinstance(allow, str) else allow)
    if unknown := sorted(names.difference(LEVERS)):
        raise ArgumentError(f"`allow` names levers that change the result: {', '.join(LEVERS)}. Received: {unknown}.")
    return names


def checked_plan(plan: Any, micro_batch_size: int | None, batch_size: int | None) -> Plan | None:
    """The plan, where it is one for this batch and nothing contradicts it.

    Raises:
        ArgumentError: It is no Plan, is for another batch, or comes with ``micro_batch_size``.
    """
    if plan is None:
        return None
    if not isinstance(plan, Plan):
        raise ArgumentError(
            f"`plan` must be a memfit Plan. Received: {plan!r:.100}. Make one with memfit.plan(model, x, y)."
        )
    if micro_batch_size is not None:
        raise ArgumentError(
            f"Pass `plan` or `micro_batch_size`, not both. Received: a plan for micro-batches of {plan.micro_batch_size} "
            f"and micro_batch_size={micro_batch_size}."
        )
    if plan.batch_size is not None and batch_size is not None and plan.batch_size != batch_size:
        raise ArgumentError(
            f"The plan is for batches of {plan.batch_size}. Received: data in batches of {batch_size}. "
            "Make a plan for this batch size with memfit.plan."
        )
    return plan


def check_fits_model(model: Any, spec: Any) -> None:
    """Raises ArgumentError where the inputs of a batch have another structure or shape than the model takes."""
    expected = getattr(model, "inputs", None)
    if not expected:
        return
    given = spec[0]
    leaves = keras_seam.flatten(given)
    if isinstance(given, dict):
        names = [tensor.name for tensor in expected]
        missing = [name for name in names if name not in given]
        if missing and isinstance(getattr(model, "input", None), dict):
            missing = [key for key in model.input if key not in given]
        if missing and len(leaves) < len(names):
            raise ArgumentError(
                f"The data does not fit the model: inputs {missing} are missing. Received: x with the keys {list(given)}. "
                f"The model takes {names}."
            )
        return
    if len(leaves) != len(expected):
        raise ArgumentError(
            f"The data does not fit the model: it takes {len(expected)} inputs. Received: x with {len(leaves)} arrays. "
            f"Pass one array for each of {[tensor.name for tensor in expected]}."
        )
    for leaf, tensor in zip(leaves, expected, strict=True):
        if not _matches(leaf.shape, tensor.shape):
            raise ArgumentError(
                f"The data does not fit the model: input {tensor.name!r} takes samples of shape {tuple(tensor.shape[1:])}. "
                f"Received: samples of shape {tuple(leaf.shape[1:])}. Reshape or resize the data, or build the model for it."
            )


def _matches(given: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether samples of one shape go into an input of another; Keras adds or drops a last axis of 1."""
    wanted = list(expected[1:])
    for sample in (list(given[1:]), [*given[1:], 1], list(given[1:-1]) if given[-1] == 1 else None):
        if sample is not None and len(sample) == len(wanted):
            return all(w is None or w == s for s, w in zip(sample, wanted, strict=True))
    return False
