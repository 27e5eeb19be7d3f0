"""Predicted peaks of steps that a compiler makes: one is not compiled, to learn more, where that is what does not fit."""

from __future__ import annotations

from memfit.backends.protocol import Backend
from memfit.predicting import Predictions
from memfit.records import NO_LEVERS, Estimate, Levers, Split

_IN_PARTS = 2
_RECOMPUTED = 4 / 3
"""What compiling a step with XLA takes, of what the plain step's does: a program in parts has the model twice, before its loop
and in it, and one that recomputes has a fourth pass beside the three of a step."""


class CompiledPeaks:
    """The peaks of one model's steps.

    Args:
        prediction: Of the model.
        backend: The current backend.
        may_do_without: Whether the model's steps are compiled and need not be.
    """

    def __init__(self, prediction: Predictions, backend: Backend, *, may_do_without: bool) -> None:
        self._prediction = prediction
        self._asks = may_do_without and backend.device_memory() is None

    def peak(self, split: Split | None, levers: Levers, ceiling: int) -> Estimate:
        """The predicted peak of a step; where the compiler would take more than the room, that.

        Args:
            split: How the batch is split, or None.
            levers: What is pulled beside that.
            ceiling: Bytes that the process may hold.
        """
        return self.uncompiled(split, levers, ceiling) or self._prediction.peak(split, levers)

    def uncompiled(self, split: Split | None, levers: Levers, ceiling: int) -> Estimate | None:
        """What is held at the least while a step is compiled, where that is above the ceiling; else None.

        Arguments as of ``peak``.
        """
        if not self._asks or levers.xla_off:
            return None
        compiling: float = self._prediction.compiling
        if split is not None or levers:
            compiling = max(compiling, self.peak(None, NO_LEVERS, ceiling).compiling)
            compiling *= 1 if split is None else _IN_PARTS
            compiling *= 1 if levers.remat is None else _RECOMPUTED
        held = self._prediction.idle() + int(compiling)
        if held <= ceiling:
            return None
        return Estimate(held, 0, "a guess of what compiling takes", compiling=int(compiling))
