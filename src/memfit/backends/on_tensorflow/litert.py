"""A model as a LiteRT file, by Keras' export and TensorFlow's converter."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def export(model: Any, path: str) -> None:
    """Writes a file whose weights are int8, activations computed in float: dynamic-range quantization."""
    model.export(path, format="litert", verbose=False, optimizations=[tf.lite.Optimize.DEFAULT])
