"""What a person sees before the first step: the plan in one line, and what takes longer than two seconds; and where."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

_PATIENCE_SECONDS = 2.0

_HANDED_ON = "MEMFIT_DISPLAY"
"""The variable by which a worker process, whose streams are pipes, knows where what it prints is seen."""


@dataclasses.dataclass(frozen=True)
class Display:
    """Where standard output is seen.

    Attributes:
        kind: "terminal", "notebook" (a line can be written over there too, and is as long as it likes) or "log".
        columns: Of a terminal.
    """

    kind: str
    columns: int | None = None


def display() -> Display:
    """Where standard output is seen now: a terminal may have been made smaller since."""
    kind, _, columns = os.environ.get(_HANDED_ON, "").partition(":")
    if kind in ("terminal", "notebook", "log"):
        return Display(kind, int(columns) if columns.isdecimal() else None)
    if sys.stdout is None:
        return Display("log")
    if in_notebook():
        return Display("notebook")
    if "PYCHARM_HOSTED" in os.environ or _is_terminal(sys.stdout):
        return Display("terminal", shutil.get_terminal_size().columns)
    return Display("log")


def handed_on() -> dict[str, str]:
    """The environment by which a process whose output this one passes on knows where it is seen."""
    shown = display()
    return {_HANDED_ON: shown.kind if shown.columns is None else f"{shown.kind}:{shown.columns}"}


def in_notebook() -> bool:
    """Whether standard output is a notebook's."""
    return type(sys.stdout).__module__.startswith("ipykernel.")


def say(message: str, *, quiet: bool) -> None:
    """One line on standard error, where it does not mix with a script's output; in a notebook, which paints that red, on
    standard output."""
    if quiet:
        return
    stream = sys.stdout if in_notebook() else sys.stderr
    if stream is not None:
        print(message, file=stream, flush=True)


@contextlib.contextmanager
def shown(doing: str, *, quiet: bool) -> Iterator[None]:
    """Inside, says what it is doing once that has taken two seconds."""
    timer = threading.Timer(_PATIENCE_SECONDS, say, [f"memfit: {doing} ..."], {"quiet": quiet})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_terminal(stream: Any) -> bool:
    isatty = getattr(stream, "isatty", None)
    try:
        return bool(isatty is not None and isatty())
    except ValueError:  # a stream that is closed
        return False
