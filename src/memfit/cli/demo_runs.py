"""The demo's runs: each a child process under the cap, and a record of how it ended."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from memfit import units
from memfit.budgeting import host, usage
from memfit.cli.demo_progress import Display
from memfit.cli.demo_training import Task, event_in
from memfit.errors import ArgumentError
from memfit.probing.cages import WatchedCage
from memfit.probing.capped import CappedRun, run_capped

WAY_NAMES = {"plain": "plain Keras", "memfit": "memfit"}
FINISHED = "finished"
KILLED = "killed by the cap"
FAILED = "failed"

# Long enough for the slowest framework on a slow machine; a child that hangs must not hang the demo for ever.
_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class DemoRun:
    """How one child ended: a row of the demo's table.

    Attributes:
        model: "shallow" or "deeper".
        way: "plain" or "memfit".
        outcome: ``FINISHED``, ``KILLED`` or ``FAILED``.
        peak_bytes: The most that the child held, pages of files not counted; near the cap for one that was killed.
        seconds: From its start to its end, importing the framework included.
        accuracy: On held-out images after the last epoch; None where it did not finish.
        micro_batch_size: What memfit split the batch into; None where it did not.
        plan: memfit's plan in a line, or None.
        predicted_peak_bytes: What memfit predicted as the peak, its whole margin included, or None.
        budget_bytes: What memfit found that it may take, or None.
        planning_seconds: What memfit took before the first step, or None.
        last_words: The last line of a child that failed, or None.
    """

    model: str
    way: str
    outcome: str
    peak_bytes: int
    seconds: float
    accuracy: float | None = None
    micro_batch_size: int | None = None
    plan: str | None = None
    predicted_peak_bytes: int | None = None
    budget_bytes: int | None = None
    planning_seconds: float | None = None
    last_words: str | None = None

    @property
    def sentence(self) -> str:
        """The run in a line."""
        head = f"{self.model}, {WAY_NAMES[self.way]}: {self.outcome} after {self.seconds:.0f} s"
        peak = f"peak {units.text(self.peak_bytes)}"
        if self.outcome == FINISHED:
            return f"{head}, {peak}, accuracy {self.accuracy or 0:.0%}"
        return f"{head}, {peak}" if self.last_words is None else f"{head}, {peak}: {self.last_words}"


@dataclasses.dataclass(frozen=True)
class Cap:
    """The demo's cap.

    Attributes:
        bytes: The most that a child may hold.
        mechanism: How it is held, in words.
        watched: Whether a watcher holds it: then no limit is there for memfit to find, and it is told.
    """

    bytes: int
    mechanism: str
    watched: bool


def checked_cap(cap_bytes: int) -> Cap:
    """Finds out, with a child that does nothing, how this machine can hold a child to a cap.

    Raises:
        ArgumentError: The machine has less than that free, so that something other than the cap would end the children.
    """
    free = host.host_ceiling()
    room = free.bytes - usage.reading().host_bytes
    if room < cap_bytes:
        raise ArgumentError(
            f"The demo's children may take {units.text(cap_bytes)} each, and this machine has {units.text(max(0, room))} "
            f"left for them ({free.source}). Close something, or pass a smaller `--cap` with a smaller `--batch-size`. "
            f"Received: --cap={units.text(cap_bytes)!r}."
        )
    mechanism = run_capped([sys.executable, "-I", "-S", "-c", ""], cap_bytes).mechanism
    return Cap(cap_bytes, mechanism, mechanism == WatchedCage.mechanism)


def run(
    task: Task,
    cap: Cap,
    *,
    backend: str,
    display: Display,
    capped: Callable[..., CappedRun] = run_capped,
) -> DemoRun:
    """Trains in a child under the cap, and says on the display how far it is.

    Args:
        task: What to train.
        cap: What the child may hold.
        backend: The Keras backend that it runs on.
        display: Where progress goes.
        capped: Runs a command under a cap, as ``run_capped`` does.
    """
    if cap.watched and task.way == "memfit":
        task = dataclasses.replace(task, budget=cap.bytes)
    done: dict[str, Any] = {}

    def on_output(stream: str, line: str) -> None:
        event = event_in(line)
        if event is not None and event["kind"] == "done":
            done.update(event)
        _show(line, event, display)

    with display.run(f"{task.model}, {WAY_NAMES[task.way]}"):
        ended = capped(
            task.argv(), cap.bytes, env=environment(backend, os.environ), timeout=_SECONDS, on_output=on_output
        )
    result = _record(task, ended, done)
    display.say(result.sentence)
    return result


def environment(backend: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: the backend, on the CPU, where the cap bounds all that it takes."""
    return {
        **given,
        "KERAS_BACKEND": backend,
        "KERAS_TORCH_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONUNBUFFERED": "1",
    }


def _show(line: str, event: dict[str, Any] | None, display: Display) -> None:
    if event is None:
        if line.startswith("memfit: "):
            display.say(f"  {line}")
    elif event["kind"] == "batch":
        display.advance(event["done"], event["total"])
    elif event["kind"] == "epoch":
        display.say(f"  epoch {event['epoch']}: accuracy {event['accuracy']:.0%} on held-out images")


def _record(task: Task, ended: CappedRun, done: dict[str, Any]) -> DemoRun:
    last_words = None
    if ended.killed:
        outcome = KILLED
    elif ended.returncode == 0 and done:
        outcome = FINISHED
    else:
        outcome = FAILED
        last_words = _last_words(ended)
    known = {field.name for field in dataclasses.fields(DemoRun)}
    return DemoRun(
        task.model,
        task.way,
        outcome,
        ended.peak_bytes,
        ended.seconds,
        last_words=last_words,
        **({name: value for name, value in done.items() if name in known} if outcome == FINISHED else {}),
    )


def _last_words(ended: CappedRun) -> str:
    if ended.timed_out:
        return f"it was ended after {ended.seconds:.0f} s"
    lines = [line.strip() for line in ended.tail if line.strip() and event_in(line) is None]
    return f"exit code {ended.returncode}: {lines[-1] if lines else 'it said nothing'}"
