"""Segmentation masks: image files with one class a pixel, beside the images that they belong to."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from memfit import errors
from memfit.data.broken_files import SkippedFile
from memfit.data.file_table import Annotations, FileTable
from memfit.data.image_decoding import DAMAGE, UnreadableImageError

_EXTENSIONS = (".png", ".bmp", ".gif", ".webp")
"""Formats that keep numbers as they are; JPEG does not."""


class MaskReader:
    """Reads masks. Safe to use from several threads.

    Args:
        image_size: (height, width) that masks are resized to, each pixel the nearest.
        values: The value of each class in the files, in the order of the classes; None where the values are the classes.
    """

    def __init__(self, image_size: tuple[int, int], values: tuple[int, ...] | None) -> None:
        self._size = image_size
        self._classes: np.ndarray | None = None
        if values is not None:
            self._classes = np.full(256, -1, np.int16)
            self._classes[list(values)] = np.arange(len(values))

    def read(self, path: str) -> np.ndarray:
        """The classes of a mask: uint8, shape (height, width, 1).

        Raises:
            UnreadableImageError: The file is missing, damaged, in colour, or holds a value that is no class.
        """
        try:
            with Image.open(path) as image:
                image.load()
                mask = self._nearest(image)
        except DAMAGE as error:
            raise UnreadableImageError(f"its mask {path} cannot be read: {error}") from error
        if self._classes is None:
            return mask[..., None]
        classes = self._classes[mask]
        if classes.min() < 0:
            raise UnreadableImageError(
                f"its mask {path} holds {mask[classes < 0][0]}, which `mask_values` does not name"
            )
        return classes.astype(np.uint8)[..., None]

    def _nearest(self, image: Image.Image) -> np.ndarray:
        if image.mode in ("RGB", "RGBA", "LA"):
            bands = np.asarray(image)
            if image.mode != "LA" and (bands[..., 1:3] != bands[..., :1]).any():
                raise ValueError("a mask has one number a pixel, and this one is in colour")
            image = Image.fromarray(np.ascontiguousarray(bands[..., 0]))
        if image.mode not in ("1", "L", "P"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 255:
                raise ValueError("it holds values over 255")
            image = Image.fromarray(values.astype(np.uint8))
        height, width = self._size
        return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)).astype(np.uint8)


def beside(
    files: FileTable, masks: str | os.PathLike[str], report: Callable[[int], None]
) -> tuple[np.ndarray, FileTable, tuple[SkippedFile, ...]]:
    """The masks of images, of the same name and in the same sub-folder of another folder, with an extension of their own.

    Returns:
        Indices of the images that have a mask, their masks, and the images that have none.

    Raises:
        ArgumentError: There is no such folder, or no image has a mask in it.
    """
    directory = os.fspath(masks)
    if not os.path.isdir(directory):
        raise errors.ArgumentError(f"`masks` must be a folder. Received: masks={directory!r}")
    found: list[int] = []
    names: list[str] = []
    skipped: list[SkippedFile] = []
    for index in range(len(files)):
        name = _name_of_mask(files, index, directory)
        if name is None:
            skipped.append(SkippedFile(files.path(index), f"it has no mask in {directory}"))
        else:
            found.append(index)
            names.append(name)
        report(index + 1)
    if not found:
        raise errors.ArgumentError(
            f"`masks` holds no mask for any image, such as {files.path(0)!r}. Masks have the names of their images and end in "
            f"one of {', '.join(_EXTENSIONS)}. Received: masks={directory!r}"
        )
    chosen = np.array(found)
    return chosen, FileTable(directory, files.folders, names, files.labels[chosen]), tuple(skipped)


def with_masks(files: FileTable, masks: FileTable) -> FileTable:
    """The images with a mask each; their folders are no classes any more."""
    return FileTable(
        files.directory,
        files.folders,
        map(files.name, range(len(files))),
        files.labels,
        Annotations(class_names=(), masks=masks),
    )


def _name_of_mask(files: FileTable, index: int, directory: str) -> str | None:
    folder = files.folders[files.labels[index]] if files.folders else ""
    stem = os.path.splitext(files.name(index))[0]
    names = (stem + extension for extension in _EXTENSIONS)
    return next((name for name in names if os.path.exists(os.path.join(directory, folder, name))), None)
