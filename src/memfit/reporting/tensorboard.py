"""Scalars for TensorBoard, by its own record writer: no framework is imported for it."""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memfit.errors import MemfitError


class Scalars:
    """One event file.

    Args:
        folder: TensorBoard's log folder; made where it is missing.

    Raises:
        MemfitError: TensorBoard is not installed, or the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            self._event_pb2: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
            self._summary_pb2: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
            record_writer: Any = importlib.import_module("tensorboard.summary.writer.record_writer")
        except ImportError as error:
            raise MemfitError(
                f"Scalars for TensorBoard need the package tensorboard ({error}). Run: pip install 'memfit[tensorboard]'"
            ) from error
        path = Path(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.memfit"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = (path / name).open("ab")
        except OSError as error:
            raise MemfitError(
                f"The folder for TensorBoard cannot be used ({error}). Received: tensorboard={str(folder)!r}. Pass another."
            ) from error
        self._writer = record_writer.RecordWriter(self._file)
        self._write(self._event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Writes a value for each tag at a step."""
        entries = [self._summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        summary = self._summary_pb2.Summary(value=entries)
        self._write(self._event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()
