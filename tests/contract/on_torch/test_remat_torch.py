"""What PyTorch holds of a segment that is recomputed."""

from __future__ import annotations

import gc

import keras
import numpy as np
import pytest
from keras import layers

if keras.backend.backend() != "torch":
    pytest.skip("for the PyTorch backend", allow_module_level=True)

import torch

from memfit import backends
from memfit.levers import remat
from memfit.records import TensorSpec

IMAGES = (8, 32, 32, 3)


def test_a_step_holds_nothing_of_what_was_recomputed() -> None:
    blocks = [
        layer
        for _ in range(4)
        for layer in (layers.Conv2D(16, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU())
    ]
    model = keras.Sequential([keras.Input(IMAGES[1:]), *blocks, layers.GlobalAveragePooling2D(), layers.Dense(1)])
    model.compile("sgd", "mse")
    batch = (TensorSpec(IMAGES, "float32"), TensorSpec((8, 1), "float32"), None)
    x, y = np.ones(IMAGES, "float32"), np.ones((8, 1), "float32")
    gc.disable()
    try:
        with remat.attached(model, remat.everything(remat.chain(model, batch), 2), backends.current()):
            model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        activations = [
            tuple(found.shape)
            for found in gc.get_objects()
            if type(found) is torch.Tensor and found.numel() == 8 * 32 * 32 * 16
        ]
    finally:
        gc.enable()
    assert not activations
