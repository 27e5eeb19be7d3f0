"""A cheap bound on what a step takes with other levers and fewer samples, from the plain step; pure arithmetic."""

from __future__ import annotations

from memfit.records import Estimate, Levers

_HALF = 0.5
"""What half precision leaves of a step's activations at the least."""

_TEMPORARIES = 4
"""Gradients' worth of temporary arrays that an update of all weights at once makes, at the most."""

_OPTIMISM = 0.75
"""Of what levers are guessed to leave of a step; what even this puts above the budget is not analysed."""


def from_below(
    whole: Estimate, levers: Levers, *, idle: int, share: float, kept: float, gradients: int, saved: int
) -> int:
    """Bytes that the peak is not expected to be under.

    What is fixed of the step is not scaled. It also bounds what analysing another step takes: TensorFlow traces its graph.

    Args:
        whole: The peak of the plain step.
        levers: Pulled on the step that is guessed.
        idle: What is held between steps.
        share: Of the samples of the plain step.
        kept: Of its activations, by what is recomputed.
        gradients: Bytes of one gradient of each weight.
        saved: Bytes of what is held between steps that the levers save.

    Example:
        >>> from_below(Estimate(900, 100, ""), Levers(), idle=200, share=0.5, kept=1.0, gradients=10, saved=0)
        500
    """
    if levers.precision is not None:
        kept *= _HALF
    grouped = _TEMPORARIES * gradients if levers.grouped_update else 0
    step = whole.fixed + share * kept * max(0, whole.upper - idle - whole.fixed - grouped)
    return int(idle - saved + _OPTIMISM * step)
