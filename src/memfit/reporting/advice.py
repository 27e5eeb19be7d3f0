"""What to try after a run, from what it recorded."""

from __future__ import annotations

from memfit import units
from memfit.records import RunReport

_MUCH_ROOM = 0.5
_SLOW = 1.1
_LARGE_SHARE = 0.25
_LONG_PLANNING = 0.2


def of_run(report: RunReport) -> tuple[str, ...]:
    """Sentences, what matters most first; never none."""
    plan, profile = report.plan, report.planned or report.profile
    kinds = {event.kind for event in report.events}
    held = report.peak.host_bytes if plan.budget.device_bytes is None else report.peak.device_bytes or 0
    room = plan.budget.limiting_bytes
    found = []
    if "retry" in kinds or "out of memory" in kinds:
        found.append(
            "A step ran out of memory on the way. Start the next run with the plan that this one ended with: "
            "plan=history.memfit.plan."
        )
    if plan.peak is not None and held > plan.peak.widest:
        found.append(
            f"The run took {units.text(held - plan.peak.widest)} more than was predicted, margin included. Pass a "
            "budget that is as much smaller, or probe=True, and report it: a prediction that is too low is a defect."
        )
    if held > room:
        found.append(f"The run took {units.text(held - room)} more than its budget. Pass a smaller budget.")
    if "leak" in kinds:
        found.append(
            "Memory grew from epoch to epoch. The event above says how fast; look at callbacks that keep what they see."
        )
    if plan.relative_time > _SLOW and plan.exact:
        found.append(
            f"A step takes about {plan.relative_time:.2f} times the plain step's time to fit. Where the result may change, "
            "allow={'precision'} or allow={'optimizer_state'} may make it faster."
        )
    if profile is not None and profile.optimizer_state > _LARGE_SHARE * profile.peak.bytes:
        found.append(
            f"The optimizer's state takes {units.text(profile.optimizer_state)}: allow={{'optimizer_state'}} "
            "keeps Adam's in 8 bits."
        )
    largest = max(profile.layers, key=lambda layer: layer.bytes, default=None) if profile is not None else None
    if profile is not None and largest is not None and largest.bytes > _LARGE_SHARE * profile.peak.bytes:
        found.append(
            f"{largest.name} ({largest.kind}) alone makes {units.text(largest.bytes)}: memfit.shrink.advise(model) shows "
            "smaller layers in its place."
        )
    if report.planning_seconds > _LONG_PLANNING * report.seconds and report.planning_seconds > 10:
        found.append("Planning took a large part of the time. Pass plan=history.memfit.plan to leave it out next time.")
    if not found and held < _MUCH_ROOM * room and plan.num_parts == 1:
        found.append(f"{units.text(room - held)} of the budget were left: a larger batch or a larger model fits.")
    return tuple(found) or (f"Nothing: the run fitted, with {units.text(max(0, room - held))} of its budget left.",)
