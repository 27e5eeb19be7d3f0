"""TensorFlow: what one step takes at its peak, from the graph of the step, which is traced and never run.

The graph's operations are walked on a model of TensorFlow's allocator: each tensor is taken when its operation runs and
given back after its last reader. On a CPU the arena of oneDNN never shrinks, so the resident bytes count, not the live
ones; and since TensorFlow runs ready operations side by side, in an order that differs from step to step, the walk goes
through several. Under XLA (``jit_compile=True``) the compiler's own buffer assignment is read instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from memfit import units
from memfit.backends import keras_seam
from memfit.backends.on_tensorflow import custom_gradients, heap, lowering, moments, xla_buffers
from memfit.backends.on_tensorflow.program import Program, UnknownSizeError, Walker, resized
from memfit.backends.on_tensorflow.step import train_step
from memfit.backends.protocol import StepKind
from memfit.records import Estimate, Split

_MOST_STEPS = 16
_FEWEST_STEPS = 8
_WALKED_OPERATIONS = 12_000
"""Steps that are walked, the first in the order of creation: as many as so many operations make, within the two bounds. The
arena is larger after each, as it is in a real run, and a walk takes some 0.1 ms an operation."""

_SMALLER_EVERY = 4
"""Smaller batches come after the second of so many walks, and again: the arena grows most when it meets them first."""

_GRAPH_FIXED = 32 * units.MIB
_GRAPH_OPERATION = 20 * units.KIB
"""What the first step makes and keeps in host memory: the traced graph, its optimised copies, kernels, threads. Measured:
25 to 40 MiB for 260 operations, 90 for 3500, 140 for 6000."""

_GRAPH_OVERLAPPING = 80 * units.KIB
"""The same for an operation in a recurrent layer's loop, of which TensorFlow keeps many turns open."""

_SHARE = 0.22
_FIXED = 16 * units.MIB
_XLA_SHARE = 0.35
_XLA_COMPILING = 192 * units.MIB
"""Margins, checked by benchmarks/prediction.py."""

_LEAST_COMPILING = 48 * units.MIB
_COMPILING_LAYER = 7 * units.MIB // 2
"""What XLA takes at the least to compile a training step. Measured: 66 MiB for 4 layers, 90 for 13, 212 for 21, 745 for 177."""

_DEVICE_SHARE = 0.25
"""On a GPU cuDNN's workspace is not in the graph, and nothing was measured: the first real step is the trial there."""


def step_bytes(model: Any, batch: Any, split: Split | None, kind: StepKind = "train", rest: int = 0) -> Estimate | None:
    """Bytes that one step takes at its peak beside weights, optimizer state and metrics, without running it.

    On a CPU the figure includes the traced graph, which the first step makes and the process keeps.

    Args:
        model: Built and compiled; its optimizer, losses and metrics are built as well.
        batch: ``(x, y, sample_weight)`` of ``TensorSpec``.
        split: How the batch is split, or None for the model's own step.
        kind: Which step: "train", "test" or "predict"; the last reads x alone.
        rest: Samples of the smaller batch that an epoch ends with.

    Returns:
        The estimate, or None where a size that matters cannot be read from the graph.
    """
    if model.run_eagerly:
        return None
    step = getattr(model, f"{kind}_step") if split is None else train_step(model, split)
    read = (batch[0], None, None) if kind == "predict" else batch
    specs = keras_seam.map_leaves(lambda spec: tf.TensorSpec(_full_parts(spec.shape, split), spec.dtype), read)
    on_device = bool(tf.config.get_visible_devices("GPU"))
    with custom_gradients.dropped():
        try:
            if model.jit_compile:
                return _compiled(step, specs, on_device)
            program, argument_sizes = traced(step, specs)
        except UnknownSizeError:
            return None
    if on_device:
        return _on_device(model, program, argument_sizes)
    whole = keras_seam.flatten(read)[0].shape[0]
    size = whole if split is None else min(whole, split.micro_batch_size)
    return _on_host(model, program, argument_sizes, size, sorted({whole % size, rest % size} - {0}))


def _full_parts(shape: Any, split: Split | None) -> Any:
    """The shape with as many samples as full parts have: of others the graph of the loop does not know the sizes."""
    if split is None or shape[0] <= split.micro_batch_size:
        return shape
    return (-(-shape[0] // split.micro_batch_size) * split.micro_batch_size, *shape[1:])


def compiling_bytes(model: Any) -> int:
    """Host bytes that compiling the plain training step takes, guessed; 0 where XLA is not asked for.

    No less than the margin of every compiled step, so that none is compiled where none would be said to fit.
    """
    if not model.jit_compile or model.run_eagerly:
        return 0
    return max(_XLA_COMPILING, _LEAST_COMPILING + _COMPILING_LAYER * len(keras_seam.flat_layers(model)))


def _on_host(model: Any, program: Program, argument_sizes: list[int], size: int, smaller: Sequence[int]) -> Estimate:
    """The allocator at its largest. How the process came to its weights is not known, so both ways to start are walked.

    Args:
        model: Whose step it is.
        program: The step in the order of its creation.
        argument_sizes: Bytes of its arguments.
        size: Samples that go through it at once.
        smaller: Other numbers of samples that come in between: they lie otherwise in what the arena has.
    """
    steps = max(_FEWEST_STEPS, min(_MOST_STEPS, _WALKED_OPERATIONS // max(1, program.num_operations)))
    orders = [program, *(program.shuffled(seed) for seed in range(1, steps))]
    held = _held_sizes(model)
    of_weights = frozenset(held)
    walked = [
        resized(order, argument_sizes, size, to, but=of_weights)
        for place, order in enumerate(orders)
        for to in (size, *(smaller if place % _SMALLER_EVERY == 1 else ()))
    ]
    allocator = heap.of_this_process()
    walkers = Walker((), allocator), Walker(held, allocator)
    # The first walk of the first tells what is live, and when.
    walkers[0].step(*walked[0])
    live, moment = walkers[0].arena.peak, moments.moment(model, program, walkers[0].at_peak)
    for walker in walkers:
        for step in walked[1 if walker is walkers[0] else 0 :]:
            walker.step(*step)
    graph = _GRAPH_OPERATION * program.num_operations + _GRAPH_OVERLAPPING * program.num_overlapping + _GRAPH_FIXED
    num_bytes = max(walker.resident for walker in walkers) + graph
    margin = int(_SHARE * num_bytes) + _FIXED
    workspace = max(0, num_bytes - live)
    return Estimate(num_bytes, margin, "graph liveness", moment, workspace=workspace, fixed=graph)


def _on_device(model: Any, program: Program, argument_sizes: list[int]) -> Estimate:
    """What is live: a GPU's arena is all of its memory from the start."""
    walker = Walker()
    walker.step(program, argument_sizes)
    moment = moments.moment(model, program, walker.at_peak)
    return Estimate(walker.arena.peak, int(_DEVICE_SHARE * walker.arena.peak) + _FIXED, "graph liveness", moment)


def _compiled(step: Callable[[Any], Any], specs: Any, on_device: bool) -> Estimate | None:
    num_bytes = xla_buffers.compiled_bytes(_flat(step, specs), keras_seam.flatten(specs))
    if num_bytes is None:
        return None
    fixed = _FIXED if on_device else _XLA_COMPILING
    margin = int(_XLA_SHARE * num_bytes) + fixed
    return Estimate(num_bytes, margin, "XLA buffer assignment")


def traced(step: Callable[[Any], Any], specs: Any) -> tuple[Program, list[int]]:
    """The step as a program, and the bytes of its arguments: those of the batch; variables are held between steps.

    Args:
        step: A step, which takes the data of a batch.
        specs: ``(x, y, sample_weight)`` of ``tf.TensorSpec``.

    Raises:
        UnknownSizeError: A size that matters cannot be read from the graph.
    """
    # Keras itself keeps autograph away from the train step.
    function = tf.function(_flat(step, specs), autograph=False)
    graph = function.get_concrete_function(*keras_seam.flatten(specs)).graph
    captured = {id(tensor) for _, tensor in graph.captures}
    sizes = [0 if id(tensor) in captured else lowering.known_bytes(tensor) or 0 for tensor in graph.inputs]
    return lowering.lower(graph), sizes


def _held_sizes(model: Any) -> list[int]:
    """Bytes of each weight and optimizer slot."""
    optimizer = getattr(model, "optimizer", None)  # there is none before ``compile``
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else ())]
    return [math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables]


def _flat(step: Callable[[Any], Any], specs: Any) -> Callable[..., Any]:
    """The step as a function of the batch's tensors, one argument each: all that XLA's inspection takes."""

    def flat(*tensors: Any) -> Any:
        rest = iter(tensors)
        x, y, sample_weight = keras_seam.map_leaves(lambda _: next(rest), specs)
        return step(keras.utils.pack_x_y_sample_weight(x, y, sample_weight))

    return flat
