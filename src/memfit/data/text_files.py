"""Texts by number: the lines of files, whole files, or texts in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import offsets
from memfit.data.offsets import RecordFiles, RecordIndex
from memfit.data.progress import stderr_progress

_BLOCK = 2**20


class FileTexts:
    """Pieces of files as texts. Safe to use from several threads.

    Args:
        index: Where each text lies.
        encoding: Of the files.
    """

    def __init__(self, index: RecordIndex, encoding: str) -> None:
        self._index = index
        self._files = RecordFiles(index.files)
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self._index)

    @property
    def held_bytes(self) -> int:
        return self._index.held_bytes

    def __getitem__(self, number: int) -> str:
        file, length, start = self._index.records[number].tolist()
        data = self._files.read(file, start, length)
        try:
            return data.decode(self._encoding)
        except UnicodeDecodeError as error:
            raise errors.MemfitError(
                f"The text at byte {start} of {self._index.files[file]} is not {self._encoding}: {error}. "
                'Pass the `encoding` of the files, such as "latin-1".'
            ) from error


class GivenTexts:
    """Texts in memory."""

    held_bytes = 0

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> str:
        return self._texts[number]


Texts = FileTexts | GivenTexts


def lines(files: Sequence[str], encoding: str) -> FileTexts:
    """The lines of files, without those that are empty."""
    return FileTexts(offsets.indexed(files, _line_spans(files), "lines"), encoding)


def documents(files: Sequence[str], encoding: str) -> FileTexts:
    """Each file as one text."""
    records = np.zeros(len(files), offsets.RECORD)
    records["file"] = np.arange(len(files))
    records["length"] = [os.path.getsize(path) for path in files]
    return FileTexts(RecordIndex(files, records), encoding)


def given(texts: Any) -> GivenTexts:
    """Texts that a user has in memory.

    Raises:
        ArgumentError: They are none.
    """
    texts = texts.to_numpy() if hasattr(texts, "to_numpy") else texts
    odd = next((text for text in texts if not isinstance(text, str)), None)
    if odd is not None:
        raise errors.ArgumentError(
            f'`files` must hold texts where `unit` is "given". Received: {odd!r:.100} among them.'
        )
    return GivenTexts(texts)


def _line_spans(files: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Place of the file, start and length of every line that holds something; a line may end in CR LF."""
    report = stderr_progress(f"finding the lines of {len(files)} files", "lines")
    count = 0
    for place, path in enumerate(files):
        for start, length in _lines_of(path):
            count += 1
            report(count)
            yield place, start, length


def _lines_of(path: str) -> Iterator[tuple[int, int]]:
    position = begun = 0
    carriage = False
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            for end in np.flatnonzero(np.frombuffer(block, np.uint8) == 10).tolist():
                returned = block[end - 1 : end] == b"\r" if end else carriage
                length = position + end - begun - returned
                if length > 0:
                    yield begun, length
                begun = position + end + 1
            position += len(block)
            carriage = block.endswith(b"\r")
    if position - begun - carriage > 0:
        yield begun, position - begun - carriage
