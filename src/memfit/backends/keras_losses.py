"""Keras' compiled losses from inside: each one's share, masks, weights, and what layers add.

The rule of ``keras_seam`` holds here too: each private name has a test in ``tests/contract/test_keras_seam.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras.src import backend as keras_backend
from keras.src.losses import loss as keras_loss

from memfit.backends.keras_seam import flat_layers, is_of_keras, map_leaves, overrides, set_attribute


def compiled_losses(model: Any) -> list[Any]:
    """The ``keras.losses.Loss`` objects of a built model, one for each compiled loss."""
    return [] if model._compile_loss is None else [entry.loss for entry in model._compile_loss._flat_losses or []]


@contextlib.contextmanager
def replaced_losses(model: Any, replace: Callable[[int, Any], Callable[..., Any]]) -> Iterator[None]:
    """Inside, each compiled loss is called through ``replace(index, loss)`` and updates no metric."""
    compiled = model._compile_loss
    if compiled is None:
        yield
        return
    if not compiled.built:
        raise RuntimeError("The compiled loss is not built; call symbolic_build with the shapes of a batch first.")
    losses, metrics = compiled._flat_losses, compiled._metrics
    compiled._flat_losses = [entry._replace(loss=replace(i, entry.loss)) for i, entry in enumerate(losses)]
    compiled._metrics = [_NoMetric() for _ in losses]
    try:
        yield
    finally:
        compiled._flat_losses, compiled._metrics = losses, metrics


class _NoMetric:
    """Stands in for the metric of one output while a part of a batch is computed."""

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        return None


@contextlib.contextmanager
def overridden_losses(model: Any, losses: list[Any]) -> Iterator[None]:
    """Inside, ``model.losses`` is the given list."""
    previous = model._losses_override
    set_attribute(model, "_losses_override", losses)
    try:
        yield
    finally:
        set_attribute(model, "_losses_override", previous)


@contextlib.contextmanager
def kept_call_losses(model: Any) -> Iterator[None]:
    """Afterwards, what ``add_loss`` and activity regularizers recorded in the last call is what it was before."""
    layers = list(model._flatten_layers())
    kept = [list(layer._losses) for layer in layers]
    try:
        yield
    finally:
        for layer, losses in zip(layers, kept, strict=True):
            layer._losses.clear()
            layer._losses.extend(losses)


def num_weight_losses(model: Any) -> int:
    """How many entries, at the end of ``model.losses``, are weight regularizers."""
    return sum(variable.regularizer is not None for variable in model.trainable_weights)


def update_loss_metrics(model: Any, total: Any, outputs: list[Any], num_samples: Any, known_samples: Any) -> None:
    """Records the losses of a whole batch as the plain step would: the total, and each output's where there are several.

    Args:
        model: A compiled and built model.
        total: The loss of the batch.
        outputs: Each compiled loss, before its loss weight.
        num_samples: Samples of the batch.
        known_samples: The same where the traced shape knows it, else None: the weight that Keras gives each output's loss.
    """
    model._loss_tracker.update_state(total, sample_weight=num_samples)
    metrics = [] if model._compile_loss is None else model._compile_loss.metrics
    if metrics and len(metrics) == len(outputs):
        for metric, value in zip(metrics, outputs, strict=True):
            metric.update_state(value, sample_weight=known_samples)


def input_structure(model: Any) -> Any:
    """The symbolic inputs as the model takes them: one, a list or a dictionary."""
    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return structure
    return model.inputs[0] if len(model.inputs) == 1 else model.inputs


def synthetic_targets(model: Any, x: Any) -> Any:
    """Zeros in the shape that each output's loss takes: class numbers where it is sparse, the output's shape elsewhere.

    Args:
        model: A compiled model.
        x: Its inputs: anything with ``shape`` and ``dtype``.
    """
    symbols = map_leaves(lambda leaf: keras.KerasTensor(leaf.shape, str(leaf.dtype)), x)
    structure = model.compute_output_spec(symbols)
    outputs = keras.tree.flatten(structure)
    given = keras.tree.flatten(model.loss)
    losses = given if len(given) == len(outputs) else [given[0] if given else None] * len(outputs)

    def target(tensor: Any, loss: Any) -> np.ndarray:
        name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
        sparse = "sparse" in str(name)
        shape = tensor.shape[1:-1] if sparse else tensor.shape[1:]
        return np.broadcast_to(np.zeros((1, *shape), "int32" if sparse else tensor.dtype), (tensor.shape[0], *shape))

    targets = [target(tensor, loss) for tensor, loss in zip(outputs, losses, strict=True)]
    return keras.tree.pack_sequence_as(structure, targets)


def has_call_losses(model: Any) -> bool:
    """Whether a layer may add losses of its activations: an activity regularizer, or a call of the user's own code."""
    own = (layer for layer in [model, *flat_layers(model)] if not is_of_keras(type(layer)))
    return any(getattr(layer, "activity_regularizer", None) for layer in flat_layers(model)) or any(own)


def may_be_scalar(model: Any) -> bool:
    """Whether some loss may come as one number for a whole batch: a function or class of the user's own."""
    if overrides(model, "compute_loss"):
        return True
    functions = (getattr(loss, "fn", type(loss)) for loss in compiled_losses(model))
    return not all(is_of_keras(function) for function in functions)


def mask_of(tensor: Any) -> Any | None:
    """The Keras mask that travels with a tensor."""
    return keras_backend.get_keras_mask(tensor)


def weight_of_entries(sample_weight: Any, mask: Any, *, dtype: str) -> Any:
    """Sample weight and mask merged as ``mean_with_sample_weight`` merges them."""
    return keras_loss.apply_mask(sample_weight, mask, dtype=dtype, reduction="mean_with_sample_weight")


def makes_masks(model: Any) -> bool:
    """Whether some layer of the model, or some loss, may put a mask on what the loss sees."""
    layers = any(
        overrides(layer, "compute_mask") or type(layer).compute_mask is not keras.layers.Layer.compute_mask
        for layer in flat_layers(model)
    )
    losses = any(not isinstance(loss, _PLAIN_LOSSES) for loss in compiled_losses(model))
    return layers or losses or any(hasattr(leaf, "_keras_mask") for leaf in getattr(model, "inputs", None) or ())


_PLAIN_LOSSES = (keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError, keras.losses.CategoricalCrossentropy)
