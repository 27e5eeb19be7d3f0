"""Parameters times optimizer slots: Flatten into a wide Dense."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 64, 64, 3)).astype("float32"), rng.integers(0, 10, 64)
model = keras.Sequential(
    [keras.Input((64, 64, 3)), keras.layers.Flatten(), keras.layers.Dense(2500), keras.layers.Dense(10)]
)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights()[1:])
