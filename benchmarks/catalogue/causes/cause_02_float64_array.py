"""Fit on a float64 array: on TensorFlow cast and copied whole."""

import os
import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(200_000, 250)), rng.normal(size=(200_000, 1))  # 400 MB
if os.environ.get("MEMFIT_CATALOGUE_LESS"):
    sys.exit()
model = keras.Sequential([keras.Input((250,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(x, y, batch_size=1000, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
