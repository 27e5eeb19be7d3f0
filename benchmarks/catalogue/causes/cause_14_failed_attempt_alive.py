"""A failed attempt stays alive through its traceback, which a notebook keeps as the last error."""

import os
import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 16)).astype("float32"), rng.normal(size=(32, 1)).astype("float32")


class Fails(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        attempt = np.full(200 * 2**20, self.params["steps"], "uint8")  # what the attempt had made by then
        if batch == 1:
            raise RuntimeError(f"the user's own error beside {attempt.nbytes} bytes")


def model():
    built = keras.Sequential([keras.Input((16,)), keras.layers.Dense(1)])
    built.compile("sgd", "mse")
    return built


errors = []
for _ in range(1 if os.environ.get("MEMFIT_CATALOGUE_LESS") else 3):
    try:
        model().fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[Fails()])
    except RuntimeError as error:
        errors.append(error)  # as sys.last_value and Out[] of a notebook do
keras.utils.set_random_seed(0)
trained = model()
trained.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *trained.get_weights())
