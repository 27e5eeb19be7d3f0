"""TensorFlow: a function around the step."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from memfit.backends.around import Around


class TensorFlowAround(Around):
    """Keras' loop calls the prediction on a list of batches, the other steps on an iterator; each batch is taken by itself."""

    def __call__(self, data: Any) -> Any:
        if self._kind == "predict":
            return _joined([self._wrapper(lambda batch: self.inner([batch]), batch) for batch in data])
        logs, first = None, True
        for batch in itertools.islice(data, self._model.steps_per_execution):
            logs, first = self._wrapper(lambda batch: self.inner(iter([batch])), batch), False
        if first:
            raise StopIteration
        return logs

    def _marks(self, variables: list[Any]) -> _Sums:
        return _Sums(_sums([variable.value for variable in variables]))


class _Sums:
    """The sums over each variable and over its absolute values: an update that leaves all of them bit for bit is none.

    They are computed beside the step, at the speed of reading the weights once, and read only where one fails.
    """

    def __init__(self, sums: Any) -> None:
        self._sums = sums

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sums) and bool(np.array_equal(self._sums, other._sums, equal_nan=True))

    __hash__ = None  # type: ignore[assignment]


@tf.function(autograph=False, reduce_retracing=True)
def _sums(values: list[Any]) -> Any:
    floats = [tf.cast(value, tf.float32) for value in values if value.dtype.is_floating or value.dtype.is_integer]
    return tf.stack([total for value in floats for total in (tf.reduce_sum(value), tf.reduce_sum(tf.abs(value)))])


def _joined(outputs: list[Any]) -> Any:
    """The outputs of the batches that Keras' ``steps_per_execution`` puts together, as the tensors that Keras wants."""
    if len(outputs) == 1:
        return keras.tree.map_structure(
            lambda part: tf.constant(part) if isinstance(part, np.ndarray) else part, outputs[0]
        )
    return keras.tree.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)
