"""Keras layers, or any function, over whole batches of images, on the CPU, repeatable. Imports Keras."""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np

from memfit import errors

_ONE_AT_A_TIME = threading.Lock()
"""A layer may serve several data sets, and its random generators have one state."""


class BatchFunction:
    """Applies a function of the user's to batches. Safe to use from several threads.

    The random generators of a Keras layer are set from the batch's key before each call, so that a batch is the same
    whenever it is made.

    Args:
        function: A Keras layer or model, called with ``training``, or any function of a batch; it takes float32 of
            shape (batch_size, height, width, channels) and returns one array with as many images.
        training: What a layer's ``training`` is set to.
    """

    def __init__(self, function: Any, *, training: bool) -> None:
        self._function = function
        self._training = training

    def __call__(self, images: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """The changed images as a numpy array; ``key``, integers from 0, is what randomness comes from."""
        if isinstance(self._function, keras.Layer):
            # On the CPU: the accelerator is the training's, and so is its memory.
            with _ONE_AT_A_TIME, keras.device("cpu"):
                result = self._called(images, key)
        else:
            result = np.asarray(self._function(images))
        if result.ndim < 2 or len(result) != len(images):
            raise errors.ArgumentError(
                "`augmentation` must return as many images as it is given. "
                f"Received: an array of shape {result.shape} for a batch of shape {images.shape}"
            )
        return result

    def _called(self, images: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        num_seeded = self._set_seeds(key)
        result = self._function(images, training=self._training)
        if self._set_seeds(key) != num_seeded:  # The call made generators, as one that builds a layer may.
            result = self._function(images, training=self._training)
        return keras.ops.convert_to_numpy(result)

    def _set_seeds(self, key: tuple[int, ...]) -> int:
        """Sets the states of the layer's generators; how many there are."""
        states = [variable for variable in self._function.variables if "seed_generator_state" in variable.path]
        words = np.random.SeedSequence(key).generate_state(2 * len(states), np.uint32) >> 1
        for state, pair in zip(states, words.reshape(-1, 2), strict=True):
            state.assign(pair.astype(keras.backend.standardize_dtype(state.dtype)))
        return len(states)
