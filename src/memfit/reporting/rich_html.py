"""Records as a notebook shows them: small tables that take the colours of the notebook, light or dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from memfit import units
from memfit.records import Budget, Plan, Profile, RunReport


def of(record: Any) -> str:
    """The HTML of a Budget, Plan, Profile or RunReport.

    Example:
        >>> of(Budget(2**30, "asked for"))
        '<table><caption>memfit: budget</caption><tr><td>Host</td><td>1 GiB</td><td>asked for</td></tr></table>'
    """
    return _OF[type(record)](record)


def _budget(budget: Budget) -> str:
    rows = [("Host", units.text(budget.host_bytes), budget.source)]
    if budget.device_bytes is not None:
        rows.append(("Device", units.text(budget.device_bytes), budget.device_source or ""))
    return _table("memfit: budget", rows)


def _plan(plan: Plan) -> str:
    rows = [("Budget", str(plan.budget))]
    if plan.peak is not None:
        rows.insert(0, ("Predicted peak", f"{plan.peak} {_bar(plan.peak.upper, plan.budget.limiting_bytes)}"))
    if plan.relative_time != 1.0:
        rows.append(("Time of a step", f"{plan.relative_time:.2f} times the plain step's"))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in plan.reasons)
    return _table(plan.summary, rows) + (f"<ul>{reasons}</ul>" if reasons else "")


def _profile(profile: Profile) -> str:
    title = f"One step at batch size {profile.batch_size} on {profile.backend} ({profile.device}): peak {profile.peak}"
    rows = [
        (
            one.name,
            "" if one.kind == one.name else one.kind,
            f"{units.text(one.bytes)} {_bar(one.bytes, profile.peak.bytes)}",
        )
        for one in profile.consumers[:12]
        if one.bytes
    ]
    return _table(title, rows)


def _report(report: RunReport) -> str:
    peak, budget = report.peak, report.plan.budget
    rows = [("Host peak, measured", f"{units.text(peak.host_bytes)} {_bar(peak.host_bytes, budget.host_bytes)}")]
    if peak.device_bytes is not None:
        rows.append(("Device peak, measured", units.text(peak.device_bytes)))
    rows += [(f"{event.seconds:.1f} s", f"{event.kind}: {event.message}") for event in report.events]
    return _plan(report.plan) + _table("What happened", rows)


def _bar(part: int, whole: int) -> str:
    """A share as text: it reads the same in every colour."""
    return f"({part / whole:.0%})" if whole else ""


def _table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption>{lines}</table>"


_OF: dict[type, Callable[[Any], str]] = {Budget: _budget, Plan: _plan, Profile: _profile, RunReport: _report}
