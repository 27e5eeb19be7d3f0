"""The plan and its reasons: what was found, in words."""

from __future__ import annotations

from memfit.planning.fastest import Found, Search
from memfit.records import Budget, Consumer, Estimate, Levers, Plan
from memfit.units import text

_CONSUMERS_NAMED = 4
_REJECTED_NAMED = 2


def plain(batch_size: int | None, budget: Budget, peak: Estimate | None, *reasons: str) -> Plan:
    """The plan that trains as ``model.fit`` does."""
    return Plan(batch_size=batch_size, micro_batch_size=None, budget=budget, peak=peak, reasons=reasons)


def arranged(batch_size: int, budget: Budget, whole: Estimate, search: Search[Levers]) -> Plan:
    """The plan of the fastest arrangement that a search found, with what was pulled and what was rejected.

    Args:
        batch_size: Samples of a full batch.
        budget: What training may take.
        whole: The predicted peak of the plain step.
        search: One that found something.
    """
    best = search.fastest
    assert best is not None, "the search found nothing"
    most = best.peak.most_under(budget.limiting_bytes)
    reasons = [
        f"the plain step on {batch_size} samples would need {text(whole.upper)} of {text(budget.limiting_bytes)}"
    ]
    reasons.append(f"{pulled_text(best, batch_size)}: needs {text(most)} at most")
    for found in search.slower[:_REJECTED_NAMED]:
        reasons.append(f"{pulled_text(found, batch_size)}: fits too, but would take {found.time:.2f} times as long")
    if search.refused:
        least = min(search.refused, key=lambda found: found.peak.upper)
        others = "" if len(search.refused) == 1 else f", the least of {len(search.refused)} refused"
        reasons.append(f"{pulled_text(least, batch_size)}: does not fit, needs {text(least.peak.upper)}{others}")
    return Plan(
        batch_size=batch_size,
        micro_batch_size=None if best.size >= batch_size else best.size,
        budget=budget,
        peak=best.peak,
        reasons=tuple(reasons),
        levers=best.option.key,
        relative_time=best.time,
    )


def refusal(smallest: Found[Levers], batch_size: int, ceiling: int) -> str:
    """Why nothing fits, from the smallest arrangement that was asked about."""
    need = text(smallest.peak.upper)
    return (
        f"Training does not fit: {pulled_text(smallest, batch_size)} needs {need}, the budget is {text(ceiling)}. "
        f"The smallest budget that would do is {need}."
    )


def refusal_to_compile(compiling: int, ceiling: int, idle: int, consumers: tuple[Consumer, ...]) -> str:
    """Why there is no room for the compiler, from the guess of what it takes and what is held beside it."""
    return (
        f"Training does not fit: compiling its step takes about {text(compiling)}, the budget of {text(ceiling)} leaves "
        f"{text(max(0, ceiling - idle))}, and the step itself may take more. The smallest budget that would do is above "
        f"{text(idle + compiling)}. {consumers_text(consumers)} The batch size does not matter to the compiler: take a larger "
        "budget, or a model of fewer layers."
    )


def pulled_text(found: Found[Levers], batch_size: int) -> str:
    """An arrangement in words."""
    levers = found.option.key
    if found.size >= batch_size:
        return f"the whole batch with {levers.text}" if levers else "the whole batch"
    parts = -(-batch_size // found.size)
    one = "one sample at a time" if found.size == 1 else f"micro-batches of {found.size} ({parts} parts)"
    return f"{one} with {levers.text}" if levers else one


def consumers_text(consumers: tuple[Consumer, ...]) -> str:
    """The largest holders of memory in one sentence."""
    largest = consumers[:_CONSUMERS_NAMED]
    named = ", ".join(f"{c.name} ({c.kind}) {text(c.bytes)}" for c in largest if c.bytes)
    return f"The largest consumers: {named}."
