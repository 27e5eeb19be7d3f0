"""Paths and labels of a folder of files, in eight bytes a file beside the name itself.

A list of a million Python strings takes 100 to 200 MB; one run of bytes with the ends of the names takes the names.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence

import numpy as np

from memfit.data.name_sorting import PackedNames


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What is known of files beside the folders that they lie in.

    Attributes:
        class_names: Names of the classes; those of the folders if left out.
        targets: float32, one row a file: what is to be predicted where that is not a class.
        masks: A mask for each file, in the same order.
    """

    class_names: tuple[str, ...] | None = None
    targets: np.ndarray | None = None
    masks: FileTable | None = None

    def take(self, indices: np.ndarray) -> Annotations:
        """Those of some of the files."""
        return Annotations(
            self.class_names,
            None if self.targets is None else self.targets[indices],
            None if self.masks is None else self.masks.take(indices),
        )


class FileTable:
    """Files in class folders, by index.

    Args:
        directory: The folder that holds the class folders.
        folders: Names of the class folders; a label is an index into them. ``("",)`` for files without classes, and none
            where classes have no folders.
        names: Each file's path inside its class folder; already packed, or one by one.
        labels: Each file's class.
        annotations: What else is known.

    Attributes:
        directory: As given.
        folders: As given.
        labels: int32, one a file.
        names: Packed.

    Example:
        >>> table = FileTable("pets", ("cats", "dogs"), ["tom.jpg", "rex.jpg"], [0, 1])
        >>> len(table), table.labels.tolist(), table.path(1).replace(os.sep, "/")
        (2, [0, 1], 'pets/dogs/rex.jpg')
    """

    def __init__(
        self,
        directory: str,
        folders: Sequence[str],
        names: Iterable[str] | PackedNames,
        labels: Sequence[int] | np.ndarray,
        annotations: Annotations = Annotations(),
    ) -> None:
        self.directory = directory
        self.folders = tuple(folders)
        self.labels = np.asarray(labels, np.int32)
        self.annotations = annotations
        # fsencode, because a file name is bytes: one that is not valid UTF-8 must come back as it was.
        self.names = names if isinstance(names, PackedNames) else PackedNames(map(os.fsencode, names))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Bytes that the table holds."""
        own = self.names.num_bytes + self.labels.nbytes
        targets, masks = self.annotations.targets, self.annotations.masks
        return own + (0 if targets is None else targets.nbytes) + (0 if masks is None else masks.num_bytes)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; a label is an index into them. Empty where there are none."""
        if self.annotations.class_names is not None:
            return list(self.annotations.class_names)
        return [name for name in self.folders if name]

    def name(self, index: int) -> str:
        """Path of a file inside its class folder."""
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> str:
        """Path of a file, as the directory was given."""
        folder = self.folders[self.labels[index]] if self.folders else ""
        return os.path.join(self.directory, folder, self.name(index))

    def take(self, indices: np.ndarray) -> FileTable:
        """The table of some of the files, in the order of ``indices`` (shape (num_files,), integers)."""
        names = self.names.take(indices)
        return FileTable(self.directory, self.folders, names, self.labels[indices], self.annotations.take(indices))
