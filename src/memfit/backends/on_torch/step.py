"""PyTorch: one backward pass a part, gradients added up in ``.grad``, one optimizer update a batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch

from memfit.backends import host_allocator, keras_losses, keras_seam
from memfit.backends.on_torch.memory import mapped_block
from memfit.backends.shares import Shares
from memfit.records import Split

_YOUNG = 1
"""The generations of objects that a step makes; collecting them takes about a millisecond."""


def attach(model: Any, split: Split | None) -> Callable[[], None]:
    """Puts the micro-batched train step on the model; returns the function that takes it off.

    With None the step stays Keras' own; what a step takes is analysed for the heap as it is set here either way.
    """
    previous = model.train_function
    if split is not None:
        keras_seam.set_attribute(model, "train_function", _train_function(MicroBatchedStep(model, split)))
    on_cpu = keras.ops.convert_to_tensor(0).device.type == "cpu"
    own_pages = keras_seam.has_own_pages(model)
    restore_heap = host_allocator.map_large_blocks(mapped_block(own_pages), close_gaps=own_pages) if on_cpu else None

    def detach() -> None:
        if restore_heap is not None:
            restore_heap()
        if split is not None:
            keras_seam.set_attribute(model, "train_function", previous)

    return detach


def _train_function(step: MicroBatchedStep) -> Callable[[Any], Any]:
    """The step as Keras' epoch loop calls it: on a list of batches."""

    def train_function(data: Any) -> Any:
        logs: Any = {}
        for batch in data:
            logs = step(batch)
        return logs

    return train_function


def gradients(model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
    """Loss and gradients of one batch in training mode; the caller keeps and restores the model's state."""
    batch = keras_seam.map_leaves(keras.ops.convert_to_tensor, batch)
    was_training = model.training
    model.train()
    model.zero_grad()
    try:
        if split is None:
            x, y, sample_weight = batch
            loss = keras_seam.compute_loss(model, x, y, keras_seam.forward(model, x, training=True), sample_weight)
            loss.backward()
            total = loss
        else:
            total = MicroBatchedStep(model, split).backward(batch)[0]
        grads = [variable.value.grad for variable in model.trainable_weights]
        return float(total.detach()), [None if g is None else g.detach().cpu().numpy() for g in grads]
    finally:
        model.zero_grad()
        model.train(was_training)


class MicroBatchedStep:
    """The micro-batched train step of one model."""

    def __init__(self, model: Any, split: Split, *, compiled: bool = True) -> None:
        self._model = model
        self._split = split
        self._shares = Shares(model, split)
        self._counted: dict[bool, bool] = {}
        self._compiled_part = torch.compile(self._part) if model.jit_compile and compiled else self._part

    def __call__(self, data: Any) -> Any:
        # Keras' tree functions on PyTorch leave cycles that hold the batch before, until Python collects them.
        gc.collect(_YOUNG)
        batch = keras.utils.unpack_x_y_sample_weight(data)
        self._model.zero_grad()
        total, outputs, logs = self.backward(batch, metrics=True)
        trainable = self._model.trainable_weights[:]
        with torch.no_grad():
            self._model.optimizer.apply([variable.value.grad for variable in trainable], trainable)
            self._shares.finish(total, outputs, _num_samples(batch), _num_samples(batch))
        return {**logs, **self._model.get_metrics_result()}

    def backward(self, batch: Any, *, metrics: bool = False) -> tuple[Any, list[Any], Any]:
        """Adds the gradients of every part to ``.grad``; returns the batch's loss, each output's loss and the logs."""
        num_samples = _num_samples(batch)
        counts = self._total_counts(batch)
        total, outputs, logs = None, None, {}
        for part in _parts(batch, num_samples, self._split.micro_batch_size):
            fraction = _num_samples(part) / num_samples
            part_total, part_outputs, y_pred = self._compiled_part(part, fraction, counts, metrics)
            total = part_total if total is None else total + part_total
            outputs = part_outputs if outputs is None else [a + b for a, b in zip(outputs, part_outputs, strict=True)]
            if metrics:
                x, y, sample_weight = part
                logs = self._model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            del y_pred
        return total, outputs or [], logs

    def _part(self, part: Any, fraction: float, counts: Any, scale: bool) -> tuple[Any, list[Any], Any]:
        model = self._model
        y_pred = keras_seam.forward(model, part[0], training=True)
        share = self._shares.share(part, y_pred, losses=model.losses, fraction=fraction, counts=counts)
        loss = model.optimizer.scale_loss(share.total) if scale else share.total
        loss.backward()
        return share.total.detach(), [value.detach() for value in share.outputs], _detached(y_pred)

    def _total_counts(self, batch: Any) -> list[Any] | None:
        """The batch's data-dependent denominators, by a forward pass without gradients where there are any."""
        weighted = batch[2] is not None
        if not self._counted.setdefault(weighted, self._shares.may_count):
            return None
        totals: list[Any] | None = None
        for part in _parts(batch, _num_samples(batch), self._split.micro_batch_size):
            counts = self._counts(part)
            if all(count is None for count in counts):
                self._counted[weighted] = False
                return None
            totals = counts if totals is None else [_add(a, b) for a, b in zip(totals, counts, strict=True)]
        return totals

    def _counts(self, part: Any) -> list[Any]:
        model = self._model
        x, y, sample_weight = part
        # A stateless scope keeps seeds and moving averages where the real pass will find them.
        with torch.no_grad(), keras.StatelessScope():
            y_pred = keras_seam.forward(model, x, training=False)
            return self._shares.counts(x, y, y_pred, sample_weight)


def _num_samples(batch: Any) -> int:
    return int(keras_seam.flatten(batch)[0].shape[0])


def _parts(batch: Any, num_samples: int, size: int) -> Iterator[Any]:
    for start in range(0, num_samples, size):
        yield keras_seam.rows(batch, slice(start, start + size))


def _add(a: Any, b: Any) -> Any:
    return None if a is None else a + b


def _detached(y_pred: Any) -> Any:
    """The outputs without their graph, with their masks."""

    def detach(tensor: Any) -> Any:
        detached = tensor.detach()
        mask = keras_losses.mask_of(tensor)
        if mask is not None:
            detached._keras_mask = mask
        return detached

    return keras_seam.map_leaves(detach, y_pred)
