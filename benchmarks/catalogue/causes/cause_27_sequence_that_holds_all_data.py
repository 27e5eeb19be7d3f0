"""A generator that holds all data, and makes a copy of it for every epoch."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)


class Everything(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.x = rng.integers(0, 255, (2_000, 64, 64, 3), "uint8")  # 25 MB
        self.on_epoch_end()

    def on_epoch_end(self):
        self.now = self.x.astype("float64") / 255  # 197 MB, and as much again while it is made

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.now[index * 100 : (index + 1) * 100], np.ones((100, 1), "float32")


model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.AveragePooling2D(16), keras.layers.Flatten()])
model.add(keras.layers.Dense(1))
model.compile("sgd", "mse")
model.fit(Everything(), epochs=2, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
