"""Calibration data for Keras' GPTQ and AWQ, of any kind of model and in bounded memory.

Keras takes calibration data as sequences of tokens, all in memory, and walks blocks of a transformer. Here the tokens are the
numbers of samples, and the one block is the whole model, which fetches those samples when it is called: at any time one batch
of them is in memory, beside one matrix of statistics for each layer.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from memfit.backends import keras_seam
from memfit.errors import ArgumentError
from memfit.shrink import measuring
from memfit.shrink.selection import values

_GROUP_SIZE = 128


class _FromNumbers(keras.layers.Layer):
    """Calls a model on the samples of which it is given the numbers."""

    def __init__(self, model: Any, x: Any) -> None:
        super().__init__()
        self.model = model
        self._samples = [lambda which: keras_seam.map_leaves(lambda leaf: np.asarray(leaf[which]), x)]
        self.built = True

    def call(self, numbers: Any) -> Any:
        which = np.sort(np.asarray(keras.ops.convert_to_numpy(numbers)).ravel())
        return self.model(self._samples[0](which), training=False)


def config(model: Any, mode: str, x: Any, *, samples: int, batch_size: int) -> Any:
    """The configuration that ``model.quantize`` takes for "gptq" or "awq".

    Args:
        model: What is quantized.
        mode: "gptq" or "awq".
        x: The model's inputs: arrays, memory maps, or a pipeline, of which so many samples are read.
        samples: How many are used.
        batch_size: How many are in memory at a time.

    Raises:
        ArgumentError: This Keras has no such mode.
    """
    kind = getattr(keras.quantizers, {"gptq": "GPTQConfig", "awq": "AWQConfig"}[mode], None)
    if kind is None:
        raise ArgumentError(
            f"Keras {keras.__version__} cannot quantize with {mode}. Received: mode={mode!r}. Take int8, or a newer Keras."
        )
    x = x if keras_seam.are_arrays((x,)) else measuring.some_samples(x, samples)
    count = min(samples, keras_seam.flatten(x)[0].shape[0])
    size = min(batch_size, count)
    return kind(
        dataset=[np.arange(count, dtype="int32")],
        tokenizer=_no_tokenizer,
        num_samples=max(1, count // size),
        sequence_length=size,
        group_size=_GROUP_SIZE,
        quantization_layer_structure={"pre_block_layers": [], "sequential_blocks": [_FromNumbers(model, x)]},
    )


def can_be_calibrated(layer: Any) -> bool:
    """Whether Keras' GPTQ and AWQ get a layer right.

    Their zero points are unsigned (seen in Keras 3.15): where all weights of a group are of one sign, as happens with few
    inputs, the zero point wraps around and the layer's output is several times too large.
    """
    kernel = getattr(layer, "kernel", None)
    if kernel is None:
        return True
    value = values(kernel)
    as_rows = (value.reshape(value.shape[0], -1), value.reshape(-1, value.shape[-1]))
    return all(
        bool(((group.min(0) <= 0) & (group.max(0) >= 0)).all())
        for rows in as_rows
        for group in (rows[start : start + _GROUP_SIZE] for start in range(0, len(rows), _GROUP_SIZE))
    )


def _no_tokenizer(text: Any) -> Any:
    """Never called: the data are numbers already."""
    return text
