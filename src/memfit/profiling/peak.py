"""The predicted peak of a run: what the process holds, what it will hold between steps, and one step on top."""

from __future__ import annotations

import dataclasses
from typing import Any

from memfit import budgeting
from memfit.backends import keras_seam
from memfit.backends.protocol import Backend, StepKind
from memfit.guarding.watch import Watcher
from memfit.profiling import cache, layers
from memfit.records import Consumer, Estimate, Profile, Reading, Split
from memfit.units import MIB

RUNTIME_RESERVE = 16 * MIB
"""What a first run adds that no analysis of the step sees: the training loop's own objects. Threads and kernels are in the
analyses' margins, which were measured on first steps."""

_COMPILING_INTERVAL = 0.01

_CRUDE_FACTOR = 8
"""Layer outputs are an eighth or more of what any measured step took; below that share of the room nothing is analysed."""

_CRUDE_UPDATE = 5
"""Gradients, and what an update holds beside them, in sizes of the gradients: most, PyTorch's Adam of all weights at once."""


@dataclasses.dataclass(frozen=True)
class Holdings:
    """Bytes of a model between steps, and of what feeds it.

    Attributes:
        weights: All weights, trained or not.
        gradients: One gradient for each trainable weight.
        optimizer_state: The optimizer's variables.
        inputs: One batch.
    """

    weights: int
    gradients: int
    optimizer_state: int
    inputs: int


def holdings(model: Any, spec: Any) -> Holdings:
    """Bytes of a built model, its optimizer where it is compiled, and a batch."""
    return Holdings(
        weights=layers.variable_bytes(model.variables),
        gradients=layers.variable_bytes(model.trainable_variables),
        optimizer_state=layers.variable_bytes(keras_seam.optimizer_variables(model)),
        inputs=layers.tensor_bytes(spec),
    )


def crude_step_bytes(held: Holdings, outputs: tuple[Consumer, ...]) -> int:
    """A bound on a step from shapes alone, far above it for all but unusual models; costs nothing."""
    activations = sum(layer.bytes for layer in outputs)
    return _CRUDE_FACTOR * (activations + held.inputs) + _CRUDE_UPDATE * held.gradients


def step_bytes(
    model: Any, spec: Any, split: Split | None, *, backend: Backend, kind: StepKind = "train", rest: int = 0
) -> Estimate | None:
    """What one step takes on top of what is held between steps, by analysis; None where it cannot be analysed.

    The answer is kept on disk: the same model, shapes and versions are analysed once. What the analysis itself takes is
    watched, and is ``compiling`` of the estimate.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec at the full batch size.
        split: How the batch is split, or None.
        backend: The current backend.
        kind: Which step.
        rest: Samples of the smaller batch that an epoch ends with; 0 where there is none, or that is not known.
    """
    key = cache.key(model, (spec, rest) if rest else spec, split, kind, backend)
    known = cache.load(key)
    if known is not None:
        return known
    before = budgeting.reading().host_bytes
    with Watcher(interval=_COMPILING_INTERVAL) as watcher:
        step = backend.step_bytes(model, spec, split, kind, rest)
    if step is None:
        return None
    step = dataclasses.replace(step, compiling=max(0, watcher.peak.host_bytes - before))
    cache.store(key, step)
    return step


def on_top_of_now(step: Estimate, *, waiting: int, backend: Backend) -> Estimate:
    """The peak of a run whose step takes ``step`` on top of what is held now: a built model, its optimizer's slots included.

    ``waiting`` bytes of the host are batches that wait for theirs, and what it takes to make them.
    """
    device = backend.device_memory()
    base = budgeting.reading(backend).host_bytes if device is None else device.used_bytes
    waiting = waiting if device is None else 0
    spare = step.spare + RUNTIME_RESERVE // 2 if step.spare else 0
    num_bytes, margin = base + waiting + step.bytes, step.margin + RUNTIME_RESERVE
    return dataclasses.replace(step, bytes=num_bytes, margin=margin, spare=spare, otherwise=None)


def profile(model: Any, spec: Any, peak: Estimate, *, backend: Backend, outputs: tuple[Consumer, ...]) -> Profile:
    """The record of what a training step costs."""
    held = holdings(model, spec)
    device = backend.device_memory()
    base: Reading = budgeting.reading(backend)
    return Profile(
        backend=backend.name,
        device="cpu" if device is None else device.kind,
        batch_size=keras_seam.flatten(spec)[0].shape[0],
        weights=held.weights,
        gradients=held.gradients,
        optimizer_state=held.optimizer_state,
        inputs=held.inputs,
        layers=outputs,
        base=base,
        peak=peak,
    )
