"""The frameworks under Keras, behind one seam. This folder is the only place that names one."""

from __future__ import annotations

import functools
import importlib

from memfit.backends.protocol import Backend
from memfit.errors import MemfitError

_MODULES = {
    "tensorflow": "memfit.backends.on_tensorflow",
    "jax": "memfit.backends.on_jax",
    "torch": "memfit.backends.on_torch",
}


@functools.cache
def current() -> Backend:
    """The backend that this process' Keras runs on; imports Keras, and with it the framework.

    Raises:
        MemfitError: Keras is missing, its framework is missing, or it runs on one that cannot train.
    """
    try:
        from memfit.backends import keras_seam
    except ImportError as error:
        raise MemfitError(
            f"Keras could not be imported ({error}). Install a framework with it, for example "
            '`pip install "memfit[tensorflow]"`, and choose it with the environment variable KERAS_BACKEND.'
        ) from error
    name = keras_seam.framework()
    if name not in _MODULES:
        raise MemfitError(
            f"memfit trains on {', '.join(_MODULES)}. Received: keras.backend.backend()={name!r}. "
            "Set the environment variable KERAS_BACKEND before Keras is imported."
        )
    backend: Backend = importlib.import_module(_MODULES[name]).backend
    return backend
