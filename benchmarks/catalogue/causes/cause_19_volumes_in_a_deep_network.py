"""Volumes that do not fit at a batch of 1, in a network of many layers as for segmentation: what is kept outweighs any one."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(2, 64, 64, 64, 1)).astype("float32"), rng.normal(size=(2, 1)).astype("float32")
layers = [keras.layers.Conv3D(8, 3, padding="same", activation="relu") for _ in range(32)]
model = keras.Sequential(
    [keras.Input((64, 64, 64, 1)), *layers, keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(1)]
)
model.compile("sgd", "mse")
model.fit(x, y, batch_size=1, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
