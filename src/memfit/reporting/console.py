"""What a person sees before the first step: the plan in one line, and what takes longer than two seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

_PATIENCE_SECONDS = 2.0


def say(message: str, *, quiet: bool) -> None:
    """One line on standard error, where it does not mix with a script's output."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


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
