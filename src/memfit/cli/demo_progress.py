"""What the demo shows while it works, on standard error: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text


class Display(Protocol):
    """Where the demo shows what it is doing."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def run(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """Inside, ``doing`` is under way."""

    def advance(self, done: int, total: int) -> None:
        """How far what is under way has come."""


class Lines:
    """Plain lines, for a log or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, line: str) -> None:
        """A line."""
        print(line, file=self._stream, flush=True)

    @contextlib.contextmanager
    def run(self, doing: str) -> Iterator[None]:
        """A line at the beginning."""
        self.say(f"{doing} ...")
        yield

    def advance(self, done: int, total: int) -> None:
        """Nothing: a log needs no line for each batch."""


class Bars:
    """A line that moves, with what is under way, how far it is and the time it has taken."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def say(self, line: str) -> None:
        """A line above the one that moves."""
        self._console.print(Text(line))

    @contextlib.contextmanager
    def run(self, doing: str) -> Iterator[None]:
        """The moving line, gone at the end."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            self._task = self._progress.add_task(doing, total=None)
            try:
                yield
            finally:
                self._task = None

    def advance(self, done: int, total: int) -> None:
        """Moves the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)


def display(stream: TextIO | None = None) -> Display:
    """Bars where a person watches a terminal, else lines."""
    stream = sys.stderr if stream is None else stream
    console = Console(file=stream)
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines(stream)
