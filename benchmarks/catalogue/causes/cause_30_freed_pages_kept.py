"""The host allocator keeps freed pages: blocks of many sizes live and die, and a small one stays at the end of each."""

import os
import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)


class Ragged(keras.utils.PyDataset):
    def __len__(self):
        return 2 if os.environ.get("MEMFIT_CATALOGUE_LESS") else 60

    def __getitem__(self, index):
        length = 40 + 37 * (index % 7)
        rng = np.random.default_rng(index)
        return rng.normal(size=(32, length, 64)).astype("float32"), np.ones((32, 1), "float32")


class KeepsALittle(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_end(self, batch, logs=None):
        blocks = [bytearray(100_000) for _ in range(300)]  # 30 MB on the heap, of which three blocks stay
        self.kept.extend(blocks[::100])


inputs = keras.Input((None, 64))
hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Dense(64, activation="relu")(inputs))
model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(hidden)))
model.compile("sgd", "mse")
model.fit(Ragged(), epochs=1, shuffle=False, verbose=2, callbacks=[KeepsALittle()])
np.savez(sys.argv[1], *model.get_weights())
