"""The plan: the largest arrangement whose predicted peak is within the budget, with the reasons in words."""

from __future__ import annotations

from collections.abc import Callable

from memfit.errors import DoesNotFitError
from memfit.planning.search import largest_micro_batch
from memfit.records import Budget, Consumer, Estimate, Plan
from memfit.units import text

_CONSUMERS_NAMED = 4


def plain(batch_size: int | None, budget: Budget, peak: Estimate | None, *reasons: str) -> Plan:
    """The plan that trains as ``model.fit`` does."""
    return Plan(batch_size=batch_size, micro_batch_size=None, budget=budget, peak=peak, reasons=reasons)


def split(batch_size: int, budget: Budget, whole: Estimate, predict: Callable[[int], Estimate]) -> Plan:
    """The plan with the largest micro-batch that fits.

    Args:
        batch_size: Samples of a full batch.
        budget: What training may take.
        whole: The predicted peak of the whole batch, above the budget.
        predict: The predicted peak for a micro-batch size.

    Raises:
        DoesNotFitError: Not even one sample at a time fits.
    """
    ceiling = budget.limiting_bytes
    size, peak = largest_micro_batch(batch_size, predict, ceiling, whole=whole)
    if size is None:
        raise DoesNotFitError(
            f"Training does not fit: one sample at a time needs {text(peak.upper)}, the budget is {text(ceiling)}. "
            f"The smallest budget that would do is {text(peak.upper)}."
        )
    parts = -(-batch_size // size)
    reasons = (
        f"the whole batch of {batch_size} would need {text(whole.upper)} of {text(ceiling)}",
        f"micro-batches of {size} ({parts} parts) need {text(peak.upper)}, and no larger one that was tried fits",
    )
    return Plan(batch_size=batch_size, micro_batch_size=size, budget=budget, peak=peak, reasons=reasons)


def consumers_text(consumers: tuple[Consumer, ...]) -> str:
    """The largest holders of memory in one line."""
    largest = consumers[:_CONSUMERS_NAMED]
    return ", ".join(f"{c.name} ({c.kind}) {text(c.bytes)}" for c in largest if c.bytes)
