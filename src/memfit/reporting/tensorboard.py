"""Scalars for TensorBoard, by its own record writer: no framework is imported for it."""

from __future__ import annotations

import importlib
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memfit.errors import MemfitError

_NAMES = ("compat.proto.event_pb2", "compat.proto.summary_pb2", "summary.writer.record_writer")


class Scalars:
    """One event file, opened with the first value, so that a monitor can be sent to the process that trains.

    Args:
        folder: TensorBoard's log folder; made where it is missing.

    Raises:
        MemfitError: TensorBoard is not installed, or the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _modules()
        self._folder = Path(folder).absolute()
        self._writer: Any = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise MemfitError(
                f"The folder for TensorBoard cannot be used ({error}). Received: tensorboard={str(folder)!r}. Pass another."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_writer": None}

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Writes a value for each tag at a step."""
        event_pb2, summary_pb2, _ = _modules()
        if self._writer is None:
            self._writer = self._opened()
            self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        entries = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=entries)))

    def _opened(self) -> Any:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.memfit"
        return _modules()[2].RecordWriter((self._folder / name).open("ab"))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _modules() -> tuple[Any, Any, Any]:
    """TensorBoard's own: events, summaries, and what writes records.

    Raises:
        MemfitError: It is not installed.
    """
    try:
        return tuple(importlib.import_module(f"tensorboard.{name}") for name in _NAMES)  # type: ignore[return-value]
    except ImportError as error:
        raise MemfitError(
            f"Scalars for TensorBoard need the package tensorboard ({error}). Run: pip install 'memfit[tensorboard]'"
        ) from error
