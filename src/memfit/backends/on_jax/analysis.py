"""What one training step takes on JAX: XLA's buffer assignment of the very programs that the run will call.

Compiling is the cost. The plain step, which most runs take, is compiled once: its function is kept for ``attach``, and JAX
finds the executable again. Others are compiled quickly on a CPU, to the same buffers, and the chosen one again before the run.
The compiler takes up to half a GiB while it runs (ResNet50); what it frees is given back to the system.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from typing import Any

import jax
import keras

from memfit import units
from memfit.backends import host_allocator, keras_seam
from memfit.backends.on_jax import moment, scratch
from memfit.backends.on_jax.step import PlainStep, Step, compiles_whole, is_prepared, prepared, quick_options
from memfit.backends.protocol import StepKind
from memfit.records import Estimate, Moment, Split

SOURCE = "compiled"
RUNTIME = 14 * units.MIB
"""Allocator slack, small jitted functions and thread stacks of a first step on a CPU: 4 to 33 MiB were seen beside the
buffers, 18 in the median, whatever the model."""
_COMPILING_FIXED = 60 * units.MIB
_COMPILING_LINE = 50 * units.KIB
"""What XLA's compiler takes on a CPU with two cores, by lines of StableHLO (benchmarks/compiling.py): for ten models of 368 to
12,793 lines 55 to 813 MiB, of which these two make 0.7 to 2.4 times as much. Most of it is code that waits until all kernels
are made; optimising less, or compiling one after the other, changed nothing."""
_Options = dict[str, Any] | None

_FIXED = 16 * units.MIB
_SHARE = 0.04


def step_bytes(model: Any, batch: Any, split: Split | None, kind: StepKind = "train") -> Estimate | None:
    """Bytes of one step at its peak beside weights, optimizer state and metrics, without running it.

    Args:
        model: Built and compiled, optimizer, losses and metrics built as well.
        batch: ``(x, y, sample_weight)`` of ``TensorSpec``.
        split: How the batch is split, or None for Keras' own step.
        kind: Which step.

    Returns:
        The estimate for a run with the step that ``attach`` puts on, which waits for each step on a CPU. None where the
        step is not jitted as one program, or runs on several devices.
    """
    if not compiles_whole(model):
        return None
    plain = split is None and keras_seam.remat_of(model) is None and keras_seam.precision_of(model) is None
    return _step_bytes(model, batch, split, kind, None if plain and kind == "train" else quick_options())


def _step_bytes(model: Any, batch: Any, split: Split | None, kind: StepKind, options: _Options) -> Estimate:
    specs = keras_seam.map_leaves(_array_spec, batch)
    try:
        if kind != "train":
            return _estimate(2 * _nbytes(specs), _program(_lowered_other(model, specs, kind).compile(options), model))
        step = prepared(model, split)
        if isinstance(step, Step):
            found = _split_bytes(step, model, specs, split, options)
        else:
            found = _estimate(2 * _nbytes(specs), _program(_lowered(step, model, specs).compile(options), model))
        step.is_compiled = step.is_compiled or options is None
        return found
    finally:
        # A step and its jitted functions refer to each other: one that is kept no longer is freed here.
        gc.collect()
        host_allocator.trim()


def compiling_bytes(model: Any, batch: Any) -> int:
    """Host bytes that compiling the plain training step takes, guessed from the length of its program.

    Compiles nothing; what it traces serves the analysis and the run.
    """
    step = prepared(model, None) if compiles_whole(model) else None
    if not isinstance(step, PlainStep):
        return 0
    num_lines = _lowered(step, model, keras_seam.map_leaves(_array_spec, batch)).as_text().count("\n")
    return _COMPILING_FIXED + _COMPILING_LINE * num_lines


def prepare(model: Any, batch: Any, split: Split | None) -> None:
    """Compiles the training step for ``attach``, if none is kept. Arguments as of ``step_bytes``."""
    if compiles_whole(model) and not (is_prepared(model, split) and prepared(model, split).is_compiled):
        _step_bytes(model, batch, split, "train", None)


def _lowered(step: PlainStep, model: Any, specs: Any) -> Any:
    return step.jitted.lower(_state_specs(model), keras.utils.pack_x_y_sample_weight(*specs))


def _lowered_other(model: Any, batch: Any, kind: StepKind) -> Any:
    """The validation or prediction step, to be compiled as Keras compiles it."""
    trainable, others, _, metrics = _state_specs(model)

    def test_step(state: Any, data: Any) -> Any:
        return model.test_step(state, data)

    def predict_step(state: Any, data: Any) -> Any:
        outputs, after = model.predict_step(state, data)
        return outputs, (state[0], after)

    if kind == "test":
        state, data = (trainable, others, metrics), keras.utils.pack_x_y_sample_weight(*batch)
        return jax.jit(test_step, donate_argnums=0).lower(state, data)
    return jax.jit(predict_step, donate_argnums=0).lower((trainable, others), (batch[0],))


def _split_bytes(step: Step, model: Any, batch: Any, split: Split | None, options: _Options) -> Estimate:
    assert split is not None
    trainable, others, optimizer, metrics = _state_specs(model)
    programs = []
    part = keras_seam.map_leaves(lambda leaf: _resized(leaf, split.micro_batch_size), batch)
    counts = None
    if step.may_count:
        counts = jax.eval_shape(step.counts, trainable, others, part)
        programs.append(_program(step.jitted_counts.lower(trainable, others, part).compile(options), model))
        counts = None if all(count is None for count in counts) else counts
    sums = jax.eval_shape(step.zeros, trainable)
    fraction = jax.ShapeDtypeStruct((), "float32")
    arguments = (trainable, others, metrics, optimizer, sums, part, fraction, counts)
    *_, sums, logs = jax.eval_shape(step.part, *arguments)
    programs.append(_program(step.jitted_part.lower(*arguments).compile(options), model))
    num_samples = keras_seam.flatten(batch)[0].shape[0]
    update = step.jitted_update.lower(trainable, others, optimizer, metrics, sums, logs, num_samples)
    updating = _program(update.compile(options), model)
    if updating.moment is not None:
        updating = dataclasses.replace(updating, moment=dataclasses.replace(updating.moment, phase="update"))
    programs.append(updating)
    return _estimate(
        2 * _nbytes(batch) + _nbytes(sums), max(programs, key=lambda program: program.bytes + program.more)
    )


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a compiled program takes beside its arguments.

    Attributes:
        bytes: What is known of it.
        more: What that may be short of.
        scratch: Of ``bytes``, what kernels take by themselves.
        moment: When its buffers are at their peak.
    """

    bytes: int
    more: int
    scratch: int
    moment: Moment | None


def _estimate(held: int, program: _Program) -> Estimate:
    """The estimate for a program that runs while ``held`` bytes are there.

    The batch counts twice: on a CPU as the numpy batch and JAX's copy of it, on an accelerator as the batch in use and the
    next one, which Keras sends ahead.
    """
    total = held + program.bytes + (RUNTIME if jax.default_backend() == "cpu" else 0)
    margin = program.more + _FIXED + int(_SHARE * total)
    return Estimate(total, margin, SOURCE, moment=program.moment, workspace=program.scratch)


def _program(compiled: Any, model: Any) -> _Program:
    assigned = compiled.memory_analysis()
    total = assigned.temp_size_in_bytes + assigned.output_size_in_bytes - assigned.alias_size_in_bytes
    text = compiled.as_text()
    paths = {layer.name: layer.path or layer.name for layer in keras_seam.flat_layers(model)}
    peak = moment.of_program(text, paths)
    if jax.default_backend() != "cpu":
        return _Program(total, 0, 0, peak)
    kernels = scratch.of_program(text)
    return _Program(total + kernels.bytes, kernels.more, kernels.bytes, peak)


def _state_specs(model: Any) -> Any:
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        keras_seam.optimizer_variables(model),
        model.metrics_variables,
    )
    return tuple([jax.ShapeDtypeStruct(v.value.shape, v.value.dtype) for v in group] for group in groups)


def _array_spec(spec: Any) -> Any:
    return jax.ShapeDtypeStruct(spec.shape, jax.dtypes.canonicalize_dtype(spec.dtype))


def _resized(spec: Any, num_samples: int) -> Any:
    return jax.ShapeDtypeStruct((min(num_samples, spec.shape[0]), *spec.shape[1:]), spec.dtype)


def _nbytes(structure: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(structure))
