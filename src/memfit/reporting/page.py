"""The report of a run as one HTML page: no network, no scripts, light and dark, from a phone's width up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from memfit import units
from memfit.errors import ArgumentError
from memfit.records import Event, RunReport
from memfit.reporting import advice, icicle
from memfit.reporting.chart import Bound, timeline_chart
from memfit.timeline import TIMELINE_FORMAT, Timeline

_SHORT = 12
"""Letters of a cell that is not broken into lines: a number with its unit, a kind of event."""


def of_document(document: str) -> str:
    """The page for what ``RunReport.to_json`` or ``MemoryMonitor.to_json`` wrote.

    Raises:
        ArgumentError: It is neither, was cut short, or is of another version.
    """
    try:
        fields = json.loads(document)
        if isinstance(fields, dict) and fields.get("format") == TIMELINE_FORMAT:
            events = tuple(Event(**event) for event in fields["events"])
            return of_timeline(Timeline.from_fields(fields["timeline"]), events)
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"Not a whole report ({str(error)[:200]}). Received: {document[:80]!r}. Write it again with "
            "history.memfit.save(FILE): a file that was cut short cannot be shown."
        ) from error
    return of_run(RunReport.from_json(document))


def of_run(report: RunReport) -> str:
    """The page of one ``memfit.fit``."""
    plan, peak, drawn = report.plan, report.peak, report.planned or report.profile
    training = max(0.0, report.seconds - report.planning_seconds)
    tiles = {
        "Host peak, measured": units.text(peak.host_bytes),
        "Host budget": units.text(plan.budget.host_bytes),
        **({} if peak.device_bytes is None else {"Device peak, measured": units.text(peak.device_bytes)}),
        **({} if plan.budget.device_bytes is None else {"Device budget": units.text(plan.budget.device_bytes)}),
        **({} if plan.peak is None else {"Predicted peak": units.text(plan.peak.bytes)}),
        "Planning": _seconds(report.planning_seconds),
        "Training": _seconds(training),
    }
    bounds = _bounds(report)
    parts = [
        _tiles(tiles),
        _section("Memory over time", timeline_chart(report.timeline or Timeline(), report.events, bounds)),
        _section("Predicted beside measured", _predicted(report)),
        "" if drawn is None else _section("Where the bytes are", icicle.of_step(drawn, _step(report))),
        _section("The plan", _items((f"Budget: {plan.budget}", *plan.reasons))),
        _section("What happened", _events(report.events, str(plan))),
        _section("What to try next", _items(advice.of_run(report))),
    ]
    return _page(plan.summary, parts)


def of_timeline(timeline: Timeline, events: Sequence[Event]) -> str:
    """The page of a ``MemoryMonitor`` that worked by itself."""
    host = max((sample.host_bytes for sample in timeline.samples), default=0)
    seconds = timeline.samples[-1].seconds - timeline.samples[0].seconds if timeline.samples else 0.0
    tiles = {"Host peak": units.text(host), "Recorded": _seconds(seconds), "Cost": f"{timeline.cost:.2%}"}
    chart = timeline_chart(timeline, events, ())
    parts = [_tiles(tiles), _section("Memory over time", chart), _section("What happened", _events(events))]
    return _page("memfit: memory while training", parts)


def _bounds(report: RunReport) -> tuple[Bound, ...]:
    plan = report.plan
    found = [Bound("host budget", "budget", plan.budget.host_bytes)]
    if plan.budget.device_bytes is not None:
        found.append(Bound("device budget", "budget", plan.budget.device_bytes))
    if plan.peak is not None:
        found.append(Bound("predicted peak", "predicted", plan.peak.bytes))
    return tuple(found)


def _predicted(report: RunReport) -> str:
    predicted = report.plan.peak
    on_device = report.plan.budget.device_bytes is not None
    measured = report.peak.device_bytes if on_device else report.peak.host_bytes
    if predicted is None or measured is None:
        return "<p>Nothing was predicted for this run: the plan did not need it.</p>"
    off = measured / predicted.bytes - 1 if predicted.bytes else 0.0
    rows = [
        ("Predicted", units.text(predicted.bytes), f"by {predicted.source}"),
        ("Predicted, with its margin", units.text(predicted.upper), "what is held against the budget"),
        ("Measured", units.text(measured), f"{off:+.1%} beside the prediction; {report.peak.source}"),
        ("Budget", units.text(report.plan.budget.limiting_bytes), "device" if on_device else "host"),
    ]
    moment = "" if predicted.moment is None else f"<p>The step is at its peak in {escape(str(predicted.moment))}.</p>"
    return _table(("", "Bytes", "Source"), rows) + moment


def _step(report: RunReport) -> str:
    """Which step the bytes by layer are of."""
    plan = report.plan
    if report.planned is None:
        trained = plan.summary.removeprefix("memfit: ")
        return f"This is the plain step, not the one that was trained, whose bytes were not predicted ({trained})."
    if plan.micro_batch_size is None and not plan.levers:
        return f"The step that was trained: the plain one at batch size {report.planned.batch_size}."
    part = "the whole batch" if plan.micro_batch_size is None else f"one micro-batch of {plan.micro_batch_size}"
    also = f", {plan.levers.text}" if plan.levers else ""
    left = "" if plan.levers.remat is None else " Of what is recomputed, that is shown which is there at the peak."
    return f"The step that was trained, with {part} in it{also}.{left}"


def _events(events: Sequence[Event], plan: str | None = None) -> str:
    """A table; of the plan that the page shows anyway, the first line alone."""
    if not events:
        return "<p>Nothing was noted.</p>"
    said = [event.message.splitlines()[0] if event.message == plan else event.message for event in events]
    rows = [(f"{event.seconds:.1f} s", event.kind, text) for event, text in zip(events, said, strict=True)]
    return _table(("After", "What", ""), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _cell(text: str) -> str:
    kind = ' class="short"' if len(text) <= _SHORT else ""
    return f"<td{kind}>{escape(text)}</td>"


def _items(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _tiles(tiles: dict[str, str]) -> str:
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items())
    return f'<dl class="tiles">{shown}</dl>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _page(title: str, parts: Sequence[Any]) -> str:
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )
