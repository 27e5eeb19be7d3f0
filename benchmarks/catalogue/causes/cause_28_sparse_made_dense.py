"""Sparse features made dense."""

import sys

import keras
import numpy as np
import scipy.sparse

keras.utils.set_random_seed(0)
x = scipy.sparse.random(20_000, 5_000, density=0.001, random_state=0, dtype="float32", format="csr")  # 1 MB
y = np.asarray(x.sum(1))
model = keras.Sequential([keras.Input((5_000,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(x.toarray(), y, batch_size=200, epochs=1, shuffle=False, verbose=2)  # 400 MB
np.savez(sys.argv[1], *model.get_weights())
