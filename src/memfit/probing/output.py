"""A child's output, line by line, as it comes; and what it reads."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

# A progress bar that never ends its line must not grow in memory; a callback that is slow makes the child wait.
_LONGEST_LINE = 65536
_MOST_WAITING = 1000
_MOST_LEFT = 200_000
_END_SECONDS = 5.0


class Output:
    """Reads a child's two streams in two threads and hands the lines to the thread that asks.

    A carriage return ends a line as a newline does, so that every state of a progress bar is one.

    Args:
        process: A child with ``stdout`` and ``stderr`` piped as text.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[tuple[str, str] | None] = queue.Queue(_MOST_WAITING)
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        self._threads = [
            threading.Thread(target=self._read, args=(name, stream), name=f"memfit-{name}", daemon=True)
            for name, stream in streams.items()
            if stream is not None
        ]
        self._num_open = len(self._threads)
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> bool:
        """Whether both streams were read to their end."""
        return self._num_open == 0

    def lines(self, seconds: float) -> Iterator[tuple[str, str]]:
        """``(stream, line)`` of what comes within ``seconds``, the line without its end.

        Stops earlier at the end of both streams, and when nothing more is waiting after the first.
        """
        deadline = time.monotonic() + seconds
        wait = seconds
        while not self.ended and time.monotonic() < deadline:
            try:
                item = self._lines.get(timeout=wait) if wait else self._lines.get_nowait()
            except queue.Empty:
                return
            wait = 0
            if item is None:
                self._num_open -= 1
            else:
                yield item

    def rest(self) -> Iterator[tuple[str, str]]:
        """All that is left, once every process that writes has ended.

        A process that got away may hold a pipe open for good, or write for good: after some seconds of silence, or more
        lines than two pipes hold, the rest is given up.
        """
        for _ in range(_MOST_LEFT):
            if self.ended:
                return
            try:
                item = self._lines.get(timeout=_END_SECONDS)
            except queue.Empty:
                return
            if item is None:
                self._num_open -= 1
            else:
                yield item

    def discard(self) -> None:
        """Reads what is left and forgets it, so that the threads end."""
        for _ in self.rest():
            pass
        if self.ended:
            for thread in self._threads:
                thread.join()

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self._lines.put((name, line.removesuffix("\n")))
        self._lines.put(None)


def feed(target: Any, data: bytes) -> None:
    """Writes to a child's standard input and closes it; a child that ends before it has read all is no error.

    Args:
        target: The pipe, opened for text or for bytes; None where the child has none.
        data: What it is to read.
    """
    assert target is not None
    try:
        with getattr(target, "buffer", target) as pipe:
            pipe.write(data)
    except BrokenPipeError:
        return
