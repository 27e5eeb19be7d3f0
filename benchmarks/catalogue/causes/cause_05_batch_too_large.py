"""Batch times image size too large."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(128, 96, 96, 3)).astype("float32"), rng.integers(0, 10, 128)
layers = [keras.layers.Conv2D(24, 3, padding="same", activation="relu") for _ in range(3)]
model = keras.Sequential(
    [keras.Input((96, 96, 3)), *layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, y, batch_size=64, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
