"""Paths and labels of a folder of files, in about thirty bytes a file beside the name itself.

A list of a million Python strings takes 100 to 200 MB; one run of bytes with the ends of the names takes the names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np


class FileTable:
    """Files in class folders, by index.

    Args:
        directory: The folder that holds the class folders.
        folders: Names of the class folders; a label is an index into them. ``("",)`` for files without classes.
        names: Each file's path inside its class folder.
        labels: Each file's class.

    Attributes:
        directory: As given.
        folders: As given.
        labels: int32, one a file.

    Example:
        >>> table = FileTable("pets", ("cats", "dogs"), ["tom.jpg", "rex.jpg"], [0, 1])
        >>> len(table), table.labels.tolist(), table.path(1).replace(os.sep, "/")
        (2, [0, 1], 'pets/dogs/rex.jpg')
    """

    def __init__(
        self, directory: str, folders: Sequence[str], names: Iterable[str], labels: Sequence[int] | np.ndarray
    ) -> None:
        self.directory = directory
        self.folders = tuple(folders)
        self.labels = np.asarray(labels, np.int32)
        # fsencode, because a file name is bytes: one that is not valid UTF-8 must come back as it was.
        encoded = [os.fsencode(name) for name in names]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Bytes that the table holds."""
        return len(self._names) + self._ends.nbytes + self.labels.nbytes

    def name(self, index: int) -> str:
        """Path of a file inside its class folder."""
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def path(self, index: int) -> str:
        """Path of a file, as the directory was given."""
        return os.path.join(self.directory, self.folders[self.labels[index]], self.name(index))

    def take(self, indices: np.ndarray) -> FileTable:
        """The table of some of the files, in the order of ``indices`` (shape (num_files,), integers)."""
        return FileTable(self.directory, self.folders, (self.name(i) for i in indices), self.labels[indices])
