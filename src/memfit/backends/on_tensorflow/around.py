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


def _joined(outputs: list[Any]) -> Any:
    """The outputs of the batches that Keras' ``steps_per_execution`` puts together, as the tensors that Keras wants."""
    if len(outputs) == 1:
        return keras.tree.map_structure(
            lambda part: tf.constant(part) if isinstance(part, np.ndarray) else part, outputs[0]
        )
    return keras.tree.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)
