"""TensorFlow: what one training step takes at its peak, from the graph of the step, which is traced and never run.

The graph's operations are walked in order on a model of TensorFlow's arena: each tensor is taken when its operation runs and
given back after its last reader. The arena never shrinks, so the resident bytes are what counts, not the live ones.
"""

from __future__ import annotations

import gc
from typing import Any

import keras
import tensorflow as tf

from memfit import units
from memfit.backends import keras_seam
from memfit.backends.on_tensorflow import lowering
from memfit.backends.on_tensorflow.program import Program, UnknownSizeError, Walker
from memfit.backends.on_tensorflow.step import train_step
from memfit.records import Estimate, Split

SOURCE = "graph liveness"
_STEPS = 2
"""The second step finds the arena as the first left it, and may need more of it."""

_SHARE = 0.15
_FIXED = 48 * units.MIB
"""Operations run side by side in an order that differs from run to run; thread stacks and kernel caches."""


def step_bytes(model: Any, batch: Any, split: Split | None) -> Estimate | None:
    """Bytes of one training step at its peak beside weights, optimizer state and metrics, without running it.

    Args:
        model: Built and compiled; its optimizer, losses and metrics are built as well.
        batch: ``(x, y, sample_weight)`` of ``TensorSpec``.
        split: How the batch is split, or None for Keras' own step.

    Returns:
        The estimate, or None where a size that matters cannot be read from the graph, and for XLA (``jit_compile=True``),
        which plans its memory by itself.
    """
    if model.jit_compile or model.run_eagerly:
        return None
    try:
        program, arguments = _traced(model, batch, split)
        resident = _resident_bytes(program, arguments)
    except UnknownSizeError:
        return None
    finally:
        gc.collect()
    return Estimate(resident, int(_SHARE * resident) + _FIXED, SOURCE)


def _traced(model: Any, batch: Any, split: Split | None) -> tuple[Program, list[int]]:
    """The step as a program, and the bytes of its arguments: those of the batch; variables are held between steps."""
    step = model.train_step if split is None else train_step(model, split)
    x, y, sample_weight = keras_seam.map_leaves(lambda spec: tf.TensorSpec(spec.shape, spec.dtype), batch)
    data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    graph = tf.function(step, autograph=False).get_concrete_function(data).graph
    captured = {id(tensor) for _, tensor in graph.captures}
    sizes = [0 if id(tensor) in captured else lowering.known_bytes(tensor) or 0 for tensor in graph.inputs]
    return lowering.lower(graph), sizes


def _resident_bytes(program: Program, argument_sizes: list[int]) -> int:
    walker = Walker()
    for _ in range(_STEPS):
        walker.step(program, argument_sizes)
    return walker.arena.resident
