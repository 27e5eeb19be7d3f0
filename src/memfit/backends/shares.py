"""The loss of a part of a batch, as its share of the loss of the whole batch.

Let a batch of N samples be cut into parts of n_i. A loss that Keras reduces by a sum is the sum over the parts. One that
it reduces by a mean over N is the sum of n_i / N times the part's mean. One whose denominator depends on the data -
a mask, or the weights of ``mean_with_sample_weight`` - is the sum of d_i / D times the part's mean, where d_i is the part's
own denominator and D that of the whole batch, counted before the first gradient. Summed over the parts, values and
gradients are those of the whole batch to float rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from memfit.backends import keras_losses, keras_seam
from memfit.records import Split


@dataclasses.dataclass(frozen=True)
class Share:
    """What one part adds to the loss of its batch.

    Attributes:
        total: Its share of the loss to minimise, a scalar.
        outputs: Its share of each compiled loss, before loss weights.
    """

    total: Any
    outputs: list[Any]


class Shares:
    """Computes shares for one model and one way to split its batches."""

    def __init__(self, model: Any, split: Split) -> None:
        self._model = model
        self._split = split
        self._own_loss = keras_seam.overrides(model, "compute_loss")

    @property
    def may_count(self) -> bool:
        """Whether some denominator may depend on the data, so that ``counts`` must run first."""
        if self._own_loss:
            return False
        losses = keras_losses.compiled_losses(self._model)
        return any(loss.reduction == "mean_with_sample_weight" for loss in losses) or keras_losses.makes_masks(
            self._model
        )

    def counts(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> list[Any]:
        """The part's denominators: for each compiled loss a scalar, or None where n_i / N serves."""
        found: list[Any] = []

        def count(_index: int, loss: Any) -> Callable[..., Any]:
            def call(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
                value, entries = _evaluate(loss, y_true, y_pred, _copied(sample_weight))
                found.append(_denominator(loss, entries, y_pred, sample_weight))
                return ops.sum(value)

            return call

        with (
            keras_losses.replaced_losses(self._model, count),
            keras_losses.overridden_losses(self._model, [ops.zeros(())]),
        ):
            keras_seam.compute_loss(self._model, x, y, y_pred, sample_weight)
        return found

    def share(
        self, batch: tuple[Any, Any, Any], y_pred: Any, *, losses: list[Any], fraction: Any, counts: list[Any] | None
    ) -> Share:
        """The part's share of the loss of its batch.

        Args:
            batch: ``(x, y, sample_weight)`` of the part.
            y_pred: The model's outputs for it.
            losses: ``model.losses`` after the forward pass.
            fraction: n_i / N, a float scalar.
            counts: The whole batch's denominators (the sums of ``counts`` over the parts), or None where none was counted.
        """
        x, y, sample_weight = batch
        if self._own_loss:
            total = ops.sum(keras_seam.compute_loss(self._model, x, y, y_pred, sample_weight))
            return Share(self._scalar(total, fraction), [])
        outputs: list[Any] = []

        def scaled(index: int, loss: Any) -> Callable[..., Any]:
            total_count = None if counts is None else counts[index]

            def call(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
                value, entries = _evaluate(loss, y_true, y_pred, _copied(sample_weight))
                outputs.append(self._scale(loss, value, entries, fraction, (y_pred, sample_weight, total_count)))
                return outputs[-1]

            return call

        with (
            keras_losses.replaced_losses(self._model, scaled),
            keras_losses.overridden_losses(self._model, self._scaled_losses(losses, fraction)),
        ):
            total = keras_seam.compute_loss(self._model, x, y, y_pred, sample_weight)
        return Share(total, outputs)

    def finish(self, total: Any, outputs: list[Any], num_samples: Any, known_samples: Any) -> None:
        """Records the summed shares of a batch in the model's loss metrics.

        Args:
            total: The sum of the parts' totals.
            outputs: The sums of the parts' outputs.
            num_samples: Samples of the batch.
            known_samples: The same, or None where the traced shape does not know it.
        """
        if (
            any(loss.reduction in (None, "none") for loss in keras_losses.compiled_losses(self._model))
            and not self._own_loss
        ):
            # A loss per sample is minimised by its sum and shown by its mean.
            samples = ops.cast(num_samples, total.dtype)
            total, outputs = total / samples, [value / samples for value in outputs]
        keras_losses.update_loss_metrics(self._model, total, outputs, num_samples, known_samples)

    def _scale(self, loss: Any, value: Any, entries: Any, fraction: Any, counted: tuple[Any, Any, Any]) -> Any:
        y_pred, sample_weight, total_count = counted
        if entries is None or len(entries.shape) == 0:
            return self._scalar(ops.sum(value), fraction)
        if loss.reduction in (None, "none", "sum"):
            return ops.sum(value)
        count = _denominator(loss, entries, y_pred, sample_weight)
        if count is None:
            return value * ops.cast(fraction, value.dtype)
        if total_count is None:
            raise RuntimeError(f"The denominator of {loss.name} was not counted before the step; please report this.")
        return value * ops.cast(ops.divide_no_nan(count, total_count), value.dtype)

    def _scalar(self, value: Any, fraction: Any) -> Any:
        return value if self._split.scalar_losses == "sum" else value * ops.cast(fraction, value.dtype)

    def _scaled_losses(self, losses: list[Any], fraction: Any) -> list[Any]:
        """``model.losses`` with each weight regularizer, and each call's loss that is a mean, scaled by n_i / N."""
        num_call_losses = len(losses) - keras_losses.num_weight_losses(self._model)
        return [
            loss
            if index < num_call_losses and self._split.call_losses == "sum"
            else loss * ops.cast(fraction, loss.dtype)
            for index, loss in enumerate(map(ops.convert_to_tensor, losses))
        ]


def _copied(sample_weight: Any) -> Any:
    """The weights as a tensor of their own: on PyTorch Keras multiplies masks into them in place."""
    return None if sample_weight is None else ops.copy(sample_weight)


def _evaluate(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any | None]:
    """The reduced loss, and the loss of each entry before reduction (None where the loss does not say)."""
    entries: list[Any] = []
    with _recorded(loss, entries):
        value = loss(y_true, y_pred, sample_weight)
    return value, entries[-1] if entries else None


@contextlib.contextmanager
def _recorded(loss: Any, entries: list[Any]) -> Iterator[None]:
    """Inside, what ``loss.call`` returns is appended to ``entries``."""
    original = loss.call

    def call(y_true: Any, y_pred: Any) -> Any:
        entries.append(original(y_true, y_pred))
        return entries[-1]

    loss.call = call
    try:
        yield
    finally:
        del loss.call


def _denominator(loss: Any, entries: Any | None, y_pred: Any, sample_weight: Any) -> Any | None:
    """What Keras divides the part's summed loss by, up to a constant factor; None where that is the number of entries."""
    if entries is None or len(entries.shape) == 0 or loss.reduction in (None, "none", "sum"):
        return None
    masks = [m for m in (keras_losses.mask_of(y_pred), keras_losses.mask_of(entries)) if m is not None]
    if loss.reduction == "mean_with_sample_weight" and (masks or sample_weight is not None):
        mask = ops.logical_and(*masks) if len(masks) == 2 else (masks[0] if masks else None)
        weight = None if sample_weight is None else ops.convert_to_tensor(_copied(sample_weight), dtype=loss.dtype)
        return ops.sum(keras_losses.weight_of_entries(weight, mask, dtype=loss.dtype))
    if not masks:
        return None
    mask = ops.logical_and(*masks) if len(masks) == 2 else masks[0]
    return ops.sum(ops.cast(mask, loss.dtype))
