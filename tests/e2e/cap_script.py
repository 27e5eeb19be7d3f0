"""A training script on arrays, run by ``test_cap.py``: ``python cap_script.py plain|memfit dense|normalized WEIGHTS.npz``.

Narrow layers over long sequences: little to compute, much to remember for the backward pass. Epochs of two full batches and a
smaller one, in a shuffled order, with momentum: nothing that a split step may get wrong is left out. The normalized
model cannot be split, as BatchNormalization mixes the samples of a batch: parts of it must be computed again.
"""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
from keras import layers

import memfit

BATCH_SIZES = {"dense": 2048, "normalized": 512}
EPOCHS = {"dense": 2, "normalized": 1}


def body(name: str) -> list[layers.Layer]:
    """The layers between the input and the head."""
    if name == "dense":
        return [layers.Dense(32, activation="tanh", use_bias=False) for _ in range(8)]
    blocks = [
        (layers.Dense(32, use_bias=False), layers.BatchNormalization(), layers.Activation("tanh")) for _ in range(14)
    ]
    return [layer for block in blocks for layer in block]


def main(way: str, name: str, path: str) -> None:
    """Trains, and writes the weights, and prints what memfit did."""
    batch_size = BATCH_SIZES[name]
    num_samples = 2 * batch_size + batch_size // 4
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_samples, 512, 4)).astype("float32")
    y = np.tanh(x[:, :, 0].mean(axis=1, keepdims=True) * 10)
    keras.utils.set_random_seed(3)
    # No biases over the million positions of a batch: TensorFlow adds their gradients up one by one, and plain Keras ends 5e-5
    # from what float64 gives (memfit, which adds up parts, 5e-6). Everything else agrees with float64 to 1e-6.
    model = keras.Sequential(
        [
            keras.Input((512, 4)),
            *body(name),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    arguments = {"x": x, "y": y, "batch_size": batch_size, "epochs": EPOCHS[name], "verbose": 2}
    history = model.fit(**arguments) if way == "plain" else memfit.fit(model, **arguments)
    np.savez(path, *model.get_weights())
    report = getattr(history, "memfit", None)
    peak = None if report is None else report.plan.peak
    print(
        json.dumps(
            {
                "loss": history.history["loss"],
                "recomputed": report is not None and report.plan.levers.remat is not None,
                "micro_batch_size": None if report is None else report.plan.micro_batch_size,
                "planned": None if peak is None else peak.upper,
                "predicted": None if peak is None else peak.widest,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
