"""The predicted peak of a run: what the process holds, what it will hold between steps, and one step on top."""

from __future__ import annotations

import dataclasses
from typing import Any

from memfit import budgeting
from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.profiling import layers
from memfit.records import Consumer, Estimate, Profile, Reading, Split
from memfit.units import MIB

RUNTIME_RESERVE = 64 * MIB
"""What a first run adds that no analysis of the step sees: thread stacks, kernel caches, the training loop's own objects."""

_QUEUED_BATCHES = 3
"""Batches in flight beside the one in the step: gathered, prefetched, and the one being made."""

_CRUDE_FACTOR = 8
"""Layer outputs are an eighth or more of what any measured step took; below that share of the room nothing is analysed."""


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
    """Bytes of a built and compiled model and a batch."""
    return Holdings(
        weights=layers.variable_bytes(model.variables),
        gradients=layers.variable_bytes(model.trainable_variables),
        optimizer_state=layers.variable_bytes(model.optimizer.variables),
        inputs=layers.tensor_bytes(spec),
    )


def crude_step_bytes(held: Holdings, outputs: tuple[Consumer, ...]) -> int:
    """A bound on a step from shapes alone, far above it for all but unusual models; costs nothing."""
    activations = sum(layer.bytes for layer in outputs)
    return _CRUDE_FACTOR * (activations + held.inputs) + 3 * held.gradients


def predicted_peak(model: Any, spec: Any, split: Split | None, *, backend: Backend, held: Holdings) -> Estimate | None:
    """The peak of the memory that holds the step, in bytes of the whole process or device; None where it cannot be analysed.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec at the full batch size.
        split: How the batch is split, or None.
        backend: The current backend.
        held: The model's holdings.
    """
    step = backend.step_bytes(model, spec, split)
    if step is None:
        return None
    return on_top_of_now(step, model=model, held=held, backend=backend)


def on_top_of_now(step: Estimate, *, model: Any, held: Holdings, backend: Backend) -> Estimate:
    """The peak of a run whose step takes ``step`` on top of what is held now and between steps."""
    # Fresh optimizer slots are promised, not resident: zero pages are taken when the first update writes them.
    slots = held.optimizer_state if keras_seam.is_fresh(model.optimizer) else 0
    device = backend.device_memory()
    base = budgeting.reading(backend).host_bytes if device is None else device.used_bytes
    queued = _QUEUED_BATCHES * held.inputs if device is None else 0
    return Estimate(base + slots + queued + step.bytes, step.margin + RUNTIME_RESERVE, step.source)


def profile(model: Any, spec: Any, peak: Estimate, *, backend: Backend, outputs: tuple[Consumer, ...]) -> Profile:
    """The record of what a step costs."""
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
