"""Mixed precision where it needs more: weights are cast anew, activations of the processor's kernels are widened again."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
keras.mixed_precision.set_global_policy("mixed_bfloat16")
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 1024)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")
layers = [keras.layers.Dense(4096, activation="relu") for _ in range(3)]  # the weights are all there is
model = keras.Sequential([keras.Input((1024,)), *layers, keras.layers.Dense(1, dtype="float32")])
model.compile("sgd", "mse")
model.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *[weight[:64] for weight in model.get_weights()])
