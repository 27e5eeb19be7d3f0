"""TensorBoard with ``histogram_freq``: every weight is copied and sorted into bins each epoch."""

import sys
import tempfile

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 1000)).astype("float32"), rng.normal(size=(16, 1)).astype("float32")
model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(8_000), keras.layers.Dense(1)])  # 32 MB
model.compile("sgd", "mse")
with tempfile.TemporaryDirectory() as folder:
    board = keras.callbacks.TensorBoard(folder, histogram_freq=1, write_graph=False)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=2, callbacks=[board])
np.savez(sys.argv[1], *[weight[:64] for weight in model.get_weights()])
