"""Shapes that change from batch to batch."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)


class Sentences(keras.utils.PyDataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return rng.normal(size=(32, 300 * (index + 1), 8)).astype("float32"), np.ones((32, 1), "float32")


inputs = keras.Input((None, 8))
hidden = inputs
for _ in range(4):
    hidden = keras.layers.Conv1D(64, 3, padding="same", activation="relu")(hidden)
model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(hidden)))
model.compile("sgd", "mse")
model.fit(Sentences(), epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
