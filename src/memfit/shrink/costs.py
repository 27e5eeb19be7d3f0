"""What a model costs: its numbers, what it holds between steps, and what a training and a prediction step take on top."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from memfit import backends
from memfit.backends import keras_seam
from memfit.executing.arguments import with_synthetic_data
from memfit.profiling import batches, layers, peak
from memfit.records import Estimate
from memfit.shrink.rebuilding import parameters


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of one model at one batch size, of a process that holds nothing else.

    Attributes:
        parameters: Numbers in its weights.
        weights: Bytes of its weights, trained or not.
        optimizer_state: Bytes of the optimizer's variables.
        step: What one training step takes on top, the gradients and the batch included.
        source: How the steps are known.
    """

    parameters: int
    weights: int
    optimizer_state: int
    step: int
    source: str

    @property
    def training(self) -> int:
        """The peak of training."""
        return self.weights + self.optimizer_state + self.step


def cost(model: Any, batch_size: int, *, shapes: Sequence[tuple[int, ...]] | None = None) -> Cost:
    """Analyses one step, as ``memfit.profile`` does; nothing is trained.

    Args:
        model: A built and compiled model.
        batch_size: Samples of a step.
        shapes: Of one sample of each input, where the model leaves them open.

    Raises:
        ArgumentError: The model leaves shapes open and none are given.
    """
    found, _ = batches.described(with_synthetic_data(model, {"batch_size": batch_size}, shapes))
    backend = backends.current()
    if not keras_seam.is_built(model):
        keras_seam.symbolic_build(model, found.spec)
    held = peak.holdings(model, found.spec)
    step = peak.step_bytes(model, found.spec, None, backend=backend) or _from_shapes(model, found.spec, held)
    return Cost(
        parameters=parameters(model),
        weights=held.weights,
        optimizer_state=held.optimizer_state,
        step=step.bytes + held.inputs,
        source=step.source,
    )


def prediction_peak(model: Any, batch_size: int) -> int | None:
    """Bytes at the peak of prediction, by analysis, of a process that holds the weights alone; None where it has none.

    Raises:
        ArgumentError: The model leaves shapes open.
    """
    found, _ = batches.described(with_synthetic_data(model, {"batch_size": batch_size}))
    step = peak.step_bytes(model, found.spec, None, backend=backends.current(), kind="predict")
    if step is None:
        return None
    return layers.variable_bytes(model.variables) + step.bytes + layers.tensor_bytes(found.spec[0])


def _from_shapes(model: Any, spec: Any, held: peak.Holdings) -> Estimate:
    crude = peak.crude_step_bytes(held, layers.layer_outputs(model, spec[0]))
    return Estimate(crude // 2, crude - crude // 2, "layer shapes")
