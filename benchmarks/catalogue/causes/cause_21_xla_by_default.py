"""XLA compiles the step by default where it can, and needs more for some models."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 512, 16)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")
inputs = keras.Input((512, 16))
hidden = keras.layers.Dense(96)(inputs)
for _ in range(6):  # elementwise chains: a compiler fuses them, or keeps every link
    hidden = keras.layers.Add()([hidden, keras.layers.Activation("gelu")(keras.layers.LayerNormalization()(hidden))])
model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(hidden)))
model.compile("sgd", "mse", jit_compile="auto" if keras.backend.backend() == "torch" else True)
model.fit(x, y, batch_size=64, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
