"""Snapshots of a run on disk: whole files or none, the last two kept, no pickle.

A snapshot is one ``.npz`` file: arrays, and a JSON document of everything else. It is written beside its place, flushed to
the disk and renamed, so that a kill at any moment leaves the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memfit.errors import SnapshotError
from memfit.guarding import plain

VERSION = 1

_KEPT = 2
_NAME = re.compile(r"snapshot-(\d{8})\.npz")
_PARTIAL = ".partial"
_LOCK = ".in-use"


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has got.

    Attributes:
        epoch: The epoch that is under way, or comes next.
        step: Batches of it that are done.
        finished: Whether no epoch is to come: a callback has stopped the training.
    """

    epoch: int
    step: int
    finished: bool = False


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on in another process.

    Attributes:
        position: How far it has got.
        call: What the data and the arguments looked like; a run with others cannot go on from here.
        variables: Values of the model's, the optimizer's and the metrics' variables, in their order.
        specs: ``[name, shape]`` of each.
        random: Of the generators: at the start of this "epoch", "now", and, where the data is one stream over all "epochs",
            at the start of each.
        callbacks: ``(class name, attributes)`` of each callback.
        data: State of the data set at the start of the epoch, or None.
        logs: Of the last batch.
    """

    position: Position
    call: dict[str, Any]
    variables: list[np.ndarray]
    specs: list[Any]
    random: dict[str, Any]
    callbacks: list[Any]
    data: dict[str, Any] | None
    logs: dict[str, float]


def write(path: Path, snapshot: Snapshot) -> None:
    """Writes one file, whole or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written; what was there before is untouched.
    """
    arrays: plain.Arrays = {}
    fields = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    fields["position"] = dataclasses.asdict(snapshot.position)
    document = {"version": VERSION, "fields": plain.encoded(fields, arrays)}
    record = np.frombuffer(json.dumps(document).encode(), np.uint8)
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, record=record, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def read(path: Path) -> Snapshot:
    """The snapshot in a file.

    Raises:
        SnapshotError: The file is not one, is broken, or was written by another version of memfit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            document = json.loads(file["record"].tobytes())
            if document["version"] == VERSION:
                fields = plain.decoded(document["fields"], file)
                return Snapshot(**{**fields, "position": Position(**fields["position"])})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SnapshotError(
            f"The snapshot cannot be read ({type(error).__name__}: {error}). Received: {str(path)!r}. "
            "Delete the file to start anew, or pass another folder as `snapshots`."
        ) from error
    raise SnapshotError(
        f"The snapshot was written in format {document['version']} by another version of memfit, which this one "
        f"(format {VERSION}) cannot read. Received: {str(path)!r}. "
        "Delete the file to start anew, or go on with the version that wrote it."
    )


class Store:
    """A folder of snapshots of one run.

    Args:
        folder: Made where it is missing.

    Raises:
        SnapshotError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SnapshotError(
                f"The folder for snapshots cannot be used ({error}). Received: snapshots={str(folder)!r}. Pass another."
            ) from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other run keeps its snapshots in the folder.

        Raises:
            SnapshotError: Another one does so now.
        """
        lock = open(self.folder / _LOCK, "w")  # noqa: SIM115 - open for as long as the lock is held
        with lock:
            try:
                _lock(lock)
            except OSError as error:
                raise SnapshotError(
                    f"Another run keeps its snapshots in the folder now. Received: snapshots={str(self.folder)!r}. "
                    "Give each run a folder of its own."
                ) from error
            for left in self.folder.glob(f"*{_PARTIAL}"):
                left.unlink(missing_ok=True)
            yield
            (self.folder / _LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it: the user's, or the last snapshot
                self.folder.rmdir()

    def add(self, snapshot: Snapshot) -> Path:
        """Writes the next snapshot and removes all but the last two.

        Raises:
            OSError: It cannot be written; those before are untouched.
        """
        numbers = [number for number, _ in self._files()]
        path = self.folder / f"snapshot-{max(numbers, default=-1) + 1:08d}.npz"
        write(path, snapshot)
        for _, old in self._files()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> Snapshot | None:
        """The last whole snapshot, or None where there is none.

        Raises:
            SnapshotError: There are snapshots, and none of them can be read.
        """
        failure: SnapshotError | None = None
        for _, path in reversed(self._files()):
            try:
                return read(path)
            except SnapshotError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return None

    def clear(self) -> None:
        """Removes every snapshot."""
        for _, path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, Path]]:
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("snapshot-*.npz"))
        return sorted((int(match[1]), path) for match, path in found if match)


def _flush_folder(folder: Path) -> None:
    """The new name itself is on the disk."""
    with _opened(folder) as descriptor:
        if descriptor is not None:
            os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems open no folders
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(file: Any) -> None:
    """Takes the file for this process until it is closed; an OSError where another has it. Windows locks none."""
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
