"""What happened in one call, and its clock."""

from __future__ import annotations

import time

from memfit.records import Event


class Log:
    """The events of one call, and its clock."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._events: list[Event] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(self._events)

    def add(self, kind: str, message: str) -> None:
        """Something has happened now."""
        self._events.append(Event(self.seconds, kind, message))
