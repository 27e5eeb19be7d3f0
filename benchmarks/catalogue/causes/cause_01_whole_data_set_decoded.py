"""The whole data set decoded into numpy."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (64, 64, 3), "uint8") for _ in range(6_000)]  # 74 MB, as on the disk
x = np.array([image.astype("float32") / 255 for image in images])  # 295 MB, twice while it is made
y = np.array([image.mean() / 255 for image in images], "float32")[:, None]
model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten()])
model.add(keras.layers.Dense(1))
model.compile("sgd", "mse")
model.fit(x, y, batch_size=64, epochs=1, shuffle=False, verbose=2)
np.savez(sys.argv[1], *model.get_weights())
