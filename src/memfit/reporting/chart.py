"""The timeline of a run as SVG: the plot stretches with the page, its labels are text of the page and do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

from memfit import units
from memfit.records import Event
from memfit.timeline import Sample, Timeline

_MOST_POINTS = 600
_NUMBER_OF_LABELS = 4
_SERIES = (
    ("host_bytes", "host", "this process"),
    ("children_bytes", "children", "its children"),
    ("group_bytes", "group", "control group"),
    ("device_bytes", "device", "device"),
)
_DRAWN_EVENTS = ("retry", "snapshot", "mark", "out of memory", "pressure")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A line over the whole time.

    Attributes:
        name: What it is.
        style: "budget" or "predicted".
        bytes: Where it is.
    """

    name: str
    style: str
    bytes: int


def timeline_chart(timeline: Timeline, events: Sequence[Event], bounds: Sequence[Bound]) -> str:
    """The chart with its keys."""
    samples = _thinned(timeline.samples)
    if not samples:
        return "<p>No sample was taken: the run was too short.</p>"
    series = [
        (style, name, [(sample.seconds, getattr(sample, field)) for sample in samples])
        for field, style, name in _SERIES
        if any(getattr(sample, field) for sample in samples)
    ]
    first, last = samples[0].seconds, samples[-1].seconds
    span = max(last - first, 1e-9)
    values = [value or 0 for _, _, points in series for _, value in points]
    # A budget far above what is held would press the timeline flat: it is then named above the plot instead.
    highest = max(values)
    within = [bound for bound in bounds if bound.bytes <= 4 * highest]
    beyond = [bound for bound in bounds if bound not in within]
    top = max(1, int(1.05 * max([highest, *(bound.bytes for bound in within)])))

    def x(seconds: float) -> float:
        return 1000 * (seconds - first) / span

    def y(num_bytes: int) -> float:
        return 1000 - 1000 * num_bytes / top

    drawn = [_phase(x(start), x(stop)) for start, stop in _validation(samples)]
    drawn += [_line("grid", 0, 1000, y(top * n // _NUMBER_OF_LABELS)) for n in range(1, _NUMBER_OF_LABELS)]
    for event in events:
        if event.kind in _DRAWN_EVENTS and first <= event.seconds <= last:
            at = x(event.seconds)
            title = escape(f"{event.kind}: {event.message}")
            drawn.append(
                f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="1000"><title>{title}</title></line>'
            )
    drawn += [_line(bound.style, 0, 1000, y(bound.bytes), bound.name) for bound in within]
    for style, name, points in series:
        known = [(x(seconds), y(value)) for seconds, value in points if value is not None]
        path = " ".join(f"{'L' if number else 'M'}{a:.1f} {b:.1f}" for number, (a, b) in enumerate(known))
        drawn.append(f'<path class="{style}" d="{path}"><title>{escape(name)}</title></path>')
    described = f"Memory from {first:.1f} to {last:.1f} seconds; at most {units.text(highest)}."
    plot = (
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{escape(described)}">'
        f"{''.join(drawn)}</svg>"
    )
    keys = [(style, f"{name} (at most {units.text(max(v or 0 for _, v in points))})") for style, name, points in series]
    keys += [(bound.style, f"{bound.name}: {units.text(bound.bytes)}") for bound in within]
    keys += [(bound.style, f"{bound.name}: {units.text(bound.bytes)}, above what is drawn") for bound in beyond]
    note = f'<p class="dim">Sampling took {timeline.cost:.2%} of a processor. Shaded: validation.</p>'
    return f'<div class="chart">{plot}{_labels(top, first, last)}</div>{_keys(keys)}{note}'


def _labels(top: int, first: float, last: float) -> str:
    heights = "".join(
        f'<span style="left:.2rem;bottom:{100 * n / _NUMBER_OF_LABELS:.1f}%">{units.text(top * n // _NUMBER_OF_LABELS)}</span>'
        for n in range(1, _NUMBER_OF_LABELS)
    )
    ends = f'<span style="left:0;top:101%">{first:.1f} s</span><span style="right:0;top:101%">{last:.1f} s</span>'
    return heights + ends


def _keys(keys: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 16 6"><line class="{style}" x1="0" x2="16" y1="3" y2="3"/></svg> {escape(name)}</li>'
        for style, name in keys
    )
    return f'<ul class="keys">{items}</ul>'


def _line(style: str, start: float, stop: float, at: float, name: str = "") -> str:
    title = f"<title>{escape(name)}</title>" if name else ""
    return f'<line class="{style}" x1="{start:.0f}" x2="{stop:.0f}" y1="{at:.1f}" y2="{at:.1f}">{title}</line>'


def _phase(start: float, stop: float) -> str:
    return f'<rect class="validation" x="{start:.1f}" y="0" width="{max(stop - start, 0.5):.1f}" height="1000"/>'


def _validation(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Stretches of time in which samples were of validation."""
    found: list[tuple[float, float]] = []
    begun: float | None = None
    for sample in samples:
        if sample.phase == "validation":
            begun = sample.seconds if begun is None else begun
        elif begun is not None:
            found.append((begun, sample.seconds))
            begun = None
    return found if begun is None else [*found, (begun, samples[-1].seconds)]


def _thinned(samples: Sequence[Sample]) -> list[Sample]:
    """As many as a screen can show, peaks kept."""
    kept = list(samples)
    while len(kept) > _MOST_POINTS:
        tail = kept[-1:] if len(kept) % 2 else []
        kept = [one.joined(other) for one, other in zip(kept[::2], kept[1::2], strict=False)] + tail
    return kept
