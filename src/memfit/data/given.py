"""The pipelines that a user passes to ``fit``, the framework's and memfit's own, brought under a share of the budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import pipelines as frameworks
from memfit.data import pipelines, queues
from memfit.data.pipeline import Pipeline
from memfit.units import text

_SHARE = 0.25
"""Of the room that the budget leaves on the host, what pipelines may hold: the rest is for the step and its batches."""

_NAMES = ("x", "validation_data")


def within(arguments: dict[str, Any], room: int) -> tuple[dict[str, Any], tuple[str, ...], int]:
    """The arguments of ``fit`` with pipelines that hold no more than their share.

    Args:
        arguments: By name; stay as they are, and so do the pipelines in them, but that memfit's own choose the place of a
            cache that is still empty.
        room: Bytes of the host that the budget leaves.

    Returns:
        The arguments, sentences for the user, and the bytes that the pipelines may come to hold, beside what memfit's own
        training data says as ``reading_bytes``.
    """
    changed, findings, held = dict(arguments), [], 0
    share = max(0, int(_SHARE * room))
    for name in _NAMES:
        tools = frameworks.tools_for(arguments.get(name))
        if isinstance(arguments.get(name), Pipeline):
            source = arguments[name].source
            said = source.bound(share)
            findings += [f"{name}: {said}"] if said else []
            held += 0 if name == "x" else source.growing_bytes
        elif tools is not None:
            changed[name], found = pipelines.bounded(arguments[name], share)
            findings += [f"{name}: {sentence}" for sentence in found]
            held += min(share, pipelines.held_bytes(tools.stages(changed[name])))
    return changed, tuple(findings), held


@contextlib.contextmanager
def ended(arguments: dict[str, Any]) -> Iterator[None]:
    """Ends the threads of memfit's own data sets when training ends, also by an error, of which Keras tells them nothing."""
    try:
        yield
    finally:
        for pipeline in _own(arguments):
            pipeline.on_epoch_end()
            pipeline.hold_as_asked()


def hold_less(arguments: dict[str, Any], queue: queues.Queue | None, wanted: int | None) -> tuple[str, ...]:
    """Has the data sets of a run hold less for the rest of it: one batch ahead alone, and less in caches in memory.

    Args:
        arguments: Of ``fit``, by name.
        queue: Of the training data, where Keras fills one.
        wanted: Bytes that caches are to give back; None for half of what they hold.

    Returns:
        What it came to, in sentences.
    """
    pipelines_here = _own(arguments)
    fewer = sum(pipeline.hold_less() for pipeline in pipelines_here) + queues.hold_less(arguments, queue)
    sources = {id(pipeline.source): pipeline.source for pipeline in pipelines_here}.values()
    left, given, growing = wanted, 0, sum(source.growing_bytes for source in sources)
    for source in sources:
        share = source.held_bytes // 2 if left is None else left
        freed = source.give_back(share) if share > 0 else 0
        given += freed
        left = None if left is None else left - freed
    sentences = []
    if fewer:
        sentences.append(f"one batch is made ahead from here on, {text(fewer)} less")
    if given:
        sentences.append(f"{text(given)} of a cache in memory were given back, and are made anew from here on")
    elif growing > sum(source.growing_bytes for source in sources):
        sentences.append("a cache in memory is filled no further")
    return tuple(sentences)


def _own(arguments: dict[str, Any]) -> list[Pipeline]:
    return [arguments[name] for name in _NAMES if isinstance(arguments.get(name), Pipeline)]
