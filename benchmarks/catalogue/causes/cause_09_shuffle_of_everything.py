"""Shuffle(len(dataset)) holds the whole data set."""

import sys

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(0)
data = tf.data.Dataset.range(6_000).map(
    lambda i: (tf.random.stateless_normal((64, 64, 3), (0, tf.cast(i, tf.int32))), 1.0)
)
model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten()])
model.add(keras.layers.Dense(1))
model.compile("sgd", "mse")
model.fit(data.shuffle(6_000, seed=1).batch(50), epochs=1, verbose=2)  # 295 MB
np.savez(sys.argv[1], *model.get_weights())
