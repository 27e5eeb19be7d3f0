"""What one training step takes on JAX: XLA's buffer assignment of the very programs that the run will call.

Compiling is the cost, and it is paid once: the functions are kept for ``attach``, and JAX finds their executables again.
Compiling leaves some tens of MiB in the process and takes more while it runs (ResNet50: about half a GiB), so read what the
process holds after the analysis, not before.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import keras

from memfit import units
from memfit.backends import keras_seam
from memfit.backends.on_jax import scratch
from memfit.backends.on_jax.step import PlainStep, Step, compiles_whole, prepare
from memfit.records import Estimate, Split

SOURCE = "compiled"
_FIXED = 32 * units.MIB
"""Allocator slack, small jitted functions and thread stacks of a first step: 10 to 30 MiB were seen, whatever the model."""
_SHARE = 0.04


def step_bytes(model: Any, batch: Any, split: Split | None) -> Estimate | None:
    """Bytes of one training step at its peak beside weights, optimizer state and metrics, without running it.

    Args:
        model: Built and compiled, optimizer, losses and metrics built as well.
        batch: ``(x, y, sample_weight)`` of ``TensorSpec``.
        split: How the batch is split, or None for Keras' own step.

    Returns:
        The estimate for a run with the step that ``attach`` puts on, which waits for each step on a CPU. None where the
        step is not jitted as one program, or runs on several devices.
    """
    if not compiles_whole(model):
        return None
    step = prepare(model, split)
    specs = keras_seam.map_leaves(_array_spec, batch)
    if isinstance(step, Step):
        return _split_bytes(step, _state_specs(model), specs, split)
    return _plain_bytes(step, _state_specs(model), specs)


def _plain_bytes(step: PlainStep, state: Any, batch: Any) -> Estimate:
    compiled = step.jitted.lower(state, keras.utils.pack_x_y_sample_weight(*batch)).compile()
    return _estimate(2 * _nbytes(batch), _program(compiled))


def _split_bytes(step: Step, state: Any, batch: Any, split: Split | None) -> Estimate:
    assert split is not None
    trainable, others, optimizer, metrics = state
    programs = []
    part = keras_seam.map_leaves(lambda leaf: _resized(leaf, split.micro_batch_size), batch)
    counts = None
    if step.may_count:
        counts = jax.eval_shape(step.counts, trainable, others, part)
        programs.append(_program(step.jitted_counts.lower(trainable, others, part).compile()))
        counts = None if all(count is None for count in counts) else counts
    sums = jax.eval_shape(step.zeros, trainable)
    fraction = jax.ShapeDtypeStruct((), "float32")
    arguments = (trainable, others, metrics, optimizer, sums, part, fraction, counts)
    *_, sums, logs = jax.eval_shape(step.part, *arguments)
    programs.append(_program(step.jitted_part.lower(*arguments).compile()))
    num_samples = keras_seam.flatten(batch)[0].shape[0]
    update = step.jitted_update.lower(trainable, others, optimizer, metrics, sums, logs, num_samples).compile()
    programs.append(_program(update))
    return _estimate(2 * _nbytes(batch) + _nbytes(sums), max(programs, key=lambda program: sum(program)))


def _estimate(held: int, program: tuple[int, int]) -> Estimate:
    """The estimate for a program that runs while ``held`` bytes are there.

    The batch counts twice: on a CPU as the numpy batch and JAX's copy of it, on an accelerator as the batch in use and the
    next one, which Keras sends ahead.
    """
    assigned, more = program
    total = held + assigned
    return Estimate(bytes=total, margin=more + _FIXED + int(_SHARE * total), source=SOURCE)


def _program(compiled: Any) -> tuple[int, int]:
    """What a compiled program takes beside its arguments: the bytes, and what they may be short of."""
    assigned = compiled.memory_analysis()
    total = assigned.temp_size_in_bytes + assigned.output_size_in_bytes - assigned.alias_size_in_bytes
    if jax.default_backend() != "cpu":
        return total, 0
    kernels = scratch.of_program(compiled.as_text())
    return total + kernels.bytes, kernels.more


def _state_specs(model: Any) -> Any:
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    return tuple([jax.ShapeDtypeStruct(v.value.shape, v.value.dtype) for v in group] for group in groups)


def _array_spec(spec: Any) -> Any:
    return jax.ShapeDtypeStruct(spec.shape, jax.dtypes.canonicalize_dtype(spec.dtype))


def _resized(spec: Any, num_samples: int) -> Any:
    return jax.ShapeDtypeStruct((min(num_samples, spec.shape[0]), *spec.shape[1:]), spec.dtype)


def _nbytes(structure: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(structure))
