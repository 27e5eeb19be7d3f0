"""A large embedding with dense gradients."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.integers(0, 600_000, (256, 20)), rng.normal(size=(256, 1)).astype("float32")
model = keras.Sequential([keras.Input((20,), dtype="int32"), keras.layers.Embedding(600_000, 64)])  # 154 MB
model.add(keras.layers.GlobalAveragePooling1D())
model.add(keras.layers.Dense(1))
model.compile("adam", "mse")
model.fit(x, y, batch_size=64, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights()[1:])
