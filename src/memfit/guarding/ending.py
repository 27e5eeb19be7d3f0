"""Ending by a signal, after what has to be kept is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol


class HasEnding(Protocol):
    """What keeps something and then ends the process with ``end_with``, where its ``ending`` is a signal."""

    ending: int | None


def end_with(number: int) -> None:
    """Ends this process by a signal, as the signal alone would have."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def ended_gently(keeper: HasEnding) -> Iterator[None]:
    """Inside, SIGTERM is answered by a snapshot, where nobody else answers it."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def asked(number: int, frame: Any) -> None:
        if keeper.ending is not None:
            end_with(number)
        keeper.ending = number

    signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if keeper.ending is not None:
            end_with(keeper.ending)
