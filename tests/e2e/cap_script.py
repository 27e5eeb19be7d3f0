"""A user's training script on arrays: ``python cap_script.py plain|memfit WEIGHTS.npz``. ``test_cap.py`` runs it.

Eight narrow layers over long sequences: little to compute, much to remember for the backward pass. Two epochs of two full
batches and a smaller one, in a shuffled order, with momentum: nothing that a split step may get wrong is left out.
"""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
from keras import layers

import memfit

BATCH_SIZE = 2048
NUM_SAMPLES = 2 * BATCH_SIZE + 500


def main(way: str, path: str) -> None:
    """Trains, and writes the weights, and prints what memfit did."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_SAMPLES, 512, 4)).astype("float32")
    y = np.tanh(x[:, :, 0].mean(axis=1, keepdims=True) * 10)
    keras.utils.set_random_seed(3)
    # No biases over the million positions of a batch: TensorFlow adds their gradients up one by one, and plain Keras ends 5e-5
    # from what float64 gives (memfit, which adds up parts, 5e-6). Everything else agrees with float64 to 1e-6.
    model = keras.Sequential(
        [
            keras.Input((512, 4)),
            *(layers.Dense(32, activation="tanh", use_bias=False) for _ in range(8)),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    arguments = {"x": x, "y": y, "batch_size": BATCH_SIZE, "epochs": 2, "verbose": 2}
    history = model.fit(**arguments) if way == "plain" else memfit.fit(model, **arguments)
    np.savez(path, *model.get_weights())
    report = getattr(history, "memfit", None)
    print(
        json.dumps(
            {
                "loss": history.history["loss"],
                "micro_batch_size": None if report is None else report.plan.micro_batch_size,
                "predicted": None if report is None or report.plan.peak is None else report.plan.peak.upper,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
