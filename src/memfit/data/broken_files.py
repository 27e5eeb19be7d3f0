"""The files of a data set that cannot be read: remembered, reported once each, and counted against a limit."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable

from memfit import errors


@dataclasses.dataclass(frozen=True)
class SkippedFile:
    """A file that is left out, and why."""

    path: str
    reason: str


class BrokenFiles:
    """Files found broken, by index. Safe to use from several threads.

    Args:
        num_files: How many files there are to read.
        known: Files that were left out, and reported, before: they are listed and count against the limit.
        max_broken: More broken files than this are an error; None to go on as long as one file can be read.
    """

    def __init__(self, num_files: int, known: Iterable[SkippedFile] = (), max_broken: int | None = None) -> None:
        self._num_files = num_files
        self._known = tuple(known)
        self._max_broken = max_broken
        self._found: dict[int, SkippedFile] = {}
        self._unreported: list[SkippedFile] = []
        self.check()

    def __contains__(self, index: int) -> bool:
        return index in self._found

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Every file that was left out so far, in the order of discovery."""
        return (*self._known, *self._found.values())

    def add(self, index: int, file: SkippedFile) -> None:
        """Remembers a broken file.

        Raises:
            MemfitError: It is one too many.
        """
        # setdefault is one step for the interpreter, so that of two threads with the same file only one reports it.
        if self._found.setdefault(index, file) is file:
            self._unreported.append(file)
            self.check()

    def check(self) -> None:
        """Raises MemfitError if there are more broken files than allowed, or no other files."""
        none_left = len(self._found) >= self._num_files
        if none_left or (self._max_broken is not None and len(self.skipped) > self._max_broken):
            raise errors.MemfitError(self._message(none_left))

    def warn(self) -> None:
        """One warning for each file that was not reported yet.

        Called where batches are handed over, and not by the threads that decode: there a warning would be an exception
        under ``-W error`` and the threads' own.
        """
        while self._unreported:
            file = self._unreported.pop(0)
            warnings.warn(f"memfit skips {file.path}: {file.reason}", stacklevel=3)

    def _message(self, none_left: bool) -> str:
        skipped = self.skipped
        first = "".join(f"\n  {file.path}: {file.reason}" for file in skipped[:5])
        found = f"{len(skipped)} of {self._num_files + len(self._known)} files cannot be read"
        if none_left:
            cure = "Copy or download the images again, and check that they are JPEG, PNG, WebP, BMP or GIF images."
            return f"{found}, and none is left. The first of them:{first}\n{cure}"
        cure = "Replace or delete them (`skipped` of the data set lists them), or raise `max_broken`."
        return f"{found}. Received: max_broken={self._max_broken}. The first of them:{first}\n{cure}"
