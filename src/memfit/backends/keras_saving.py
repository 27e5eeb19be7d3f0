"""A model as Keras writes it, without what Keras imports on the way; the state of Keras' own random generator.

The rule of ``keras_seam`` holds here too: each private name has a test in ``tests/contract/test_keras_seam.py``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.utils import module_utils


@contextlib.contextmanager
def no_imports() -> Iterator[None]:
    """Inside, Keras' serialization does not import TensorFlow where the process has not done so.

    It would, on every backend, to ask whether an object is one of TensorFlow's: 130 MiB that stay, and seconds.
    """
    lazy = module_utils.tensorflow
    if "tensorflow" in sys.modules:
        yield
        return
    previous, lazy._available = lazy._available, False
    try:
        yield
    finally:
        lazy._available = previous


def description(model: Any) -> dict[str, Any]:
    """Architecture and compile arguments of a model, as Keras would write them to a file.

    Raises:
        NotImplementedError: A layer of the model cannot be written.
    """
    with no_imports():
        return {"model": keras.saving.serialize_keras_object(model), "compiled": model.get_compile_config()}


def described_model(described: dict[str, Any], classes: dict[str, Any]) -> Any:
    """The compiled model of a description, with weights of its own; no file is read.

    Args:
        described: From ``description``, of this program: code of ``Lambda`` layers in it is run.
        classes: The user's own, by the names in the description.
    """
    with no_imports():
        return keras.saving.deserialize_keras_object(described["model"], custom_objects=classes, safe_mode=False)


def global_seed_generator(*, create: bool = False) -> Any | None:
    """The generator behind ``keras.random`` without a seed; None where nothing has drawn from it yet."""
    found = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    return seed_generator.global_seed_generator() if found is None and create else found
