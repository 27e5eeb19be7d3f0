"""Validation_split slices the whole array as tensors."""

import os
import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.standard_normal((150_000, 500), "float32")  # 300 MB
y = x[:, :1].copy()
if os.environ.get("MEMFIT_CATALOGUE_LESS"):
    sys.exit()
model = keras.Sequential([keras.Input((500,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
model.compile("sgd", "mse")
history = model.fit(x, y, batch_size=1000, epochs=1, validation_split=0.3, shuffle=False, verbose=2)
np.savez(sys.argv[1], *[*model.get_weights(), np.array(history.history["val_loss"])])
