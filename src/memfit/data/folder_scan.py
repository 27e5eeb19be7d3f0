"""Which image files a folder of class folders holds, listed once, sorted, with empty files set aside."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from memfit import errors
from memfit.data.broken_files import SkippedFile
from memfit.data.file_table import FileTable

EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".webp"})


@dataclasses.dataclass(frozen=True)
class FolderScan:
    """What a folder holds.

    Attributes:
        files: The image files that are not empty, by class, then by name.
        sizes: Bytes of each file on disk, int64, shape (num_files,).
        skipped: Empty files and links to nothing.
        visited: Every folder that was looked into.
    """

    files: FileTable
    sizes: np.ndarray
    skipped: tuple[SkippedFile, ...]
    visited: tuple[str, ...] = ()


@dataclasses.dataclass
class _Listing:
    names: list[str] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    skipped: list[SkippedFile] = dataclasses.field(default_factory=list)
    visited: list[str] = dataclasses.field(default_factory=list)
    other_extensions: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def scan(
    directory: str,
    *,
    class_names: Sequence[str] | None = None,
    without_classes: bool = False,
    follow_links: bool = False,
    report: Callable[[int], None] = lambda num_files: None,
) -> FolderScan:
    """Lists the images of a folder.

    Files and folders whose names start with a dot are left out (``.ipynb_checkpoints``, macOS's ``._photo.jpg``).

    Args:
        directory: Folder with one sub-folder a class.
        class_names: The sub-folders to use, in the order of the labels; all of them, sorted, if left out.
        without_classes: Whether images that lie in ``directory`` itself will do where it has no sub-folders.
        follow_links: Whether to go into linked folders below the class folders. A class folder may always be a link.
        report: Called after each file with the number of files so far.

    Raises:
        ArgumentError: The directory is missing, or holds no class folders or no images, or not those named.
    """
    if not os.path.exists(directory):
        raise errors.ArgumentError(
            f"`directory` does not exist. Received: directory={directory!r}, which is {os.path.abspath(directory)!r}. "
            "Check the spelling and the working directory."
        )
    if not os.path.isdir(directory):
        raise errors.ArgumentError(
            f"`directory` must be a folder with one sub-folder a class. Received: directory={directory!r}, a file."
        )
    folders = _class_folders(directory, class_names, without_classes)
    listing = _Listing()
    num_seen = 0
    for label, folder in enumerate(folders):
        for name, entry in sorted(
            _walk(os.path.join(directory, folder), follow_links, listing.visited), key=lambda found: found[0]
        ):
            _enter(listing, name, entry, label)
            num_seen += 1
            report(num_seen)
    if not listing.names:
        raise errors.ArgumentError(_no_images(directory, folders, listing))
    files = FileTable(directory, folders, listing.names, listing.labels)
    return FolderScan(files, np.asarray(listing.sizes, np.int64), tuple(listing.skipped), (directory, *listing.visited))


def _class_folders(directory: str, class_names: Sequence[str] | None, without_classes: bool) -> list[str]:
    with os.scandir(directory) as entries:
        found = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    if class_names is not None:
        names = list(class_names)
        missing = [name for name in names if name not in found]
        if isinstance(class_names, str) or missing or not names or len(set(names)) != len(names):
            raise errors.ArgumentError(
                f"`class_names` must be different names of sub-folders of {directory!r}, which has: {found}. "
                f"Received: class_names={class_names!r}" + (f", of which {missing} do not exist." if missing else ".")
            )
        return names
    if not found and without_classes:
        return [""]
    if not found:
        raise errors.ArgumentError(
            f"`directory` must hold one sub-folder a class (cats/, dogs/), and has no sub-folders. "
            f"Received: directory={directory!r}. Move the images into sub-folders, or pass `label_mode=None` to read "
            "images without labels."
        )
    return found


def _walk(folder: str, follow_links: bool, visited: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Paths inside ``folder`` with their entries; each real folder once, so that a link to a parent ends."""
    waiting = [("", folder)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        prefix, path = waiting.pop()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        visited.append(path)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if follow_links or not entry.is_symlink():
                        waiting.append((f"{prefix}{entry.name}{os.sep}", entry.path))
                else:
                    yield prefix + entry.name, entry


def _enter(listing: _Listing, name: str, entry: os.DirEntry[str], label: int) -> None:
    extension = os.path.splitext(name)[1].lower()
    if extension not in EXTENSIONS:
        listing.other_extensions[extension or "no extension"] += 1
        return
    try:
        size = entry.stat().st_size
    except OSError as error:
        listing.skipped.append(SkippedFile(entry.path, error.strerror or type(error).__name__))
        return
    if size == 0:
        listing.skipped.append(SkippedFile(entry.path, "the file is empty"))
        return
    listing.names.append(name)
    listing.labels.append(label)
    listing.sizes.append(size)


def _no_images(directory: str, folders: Sequence[str], listing: _Listing) -> str:
    message = f"No images were found in {directory!r}"
    if folders != [""]:
        message += f" (sub-folders: {', '.join(folders[:10])}{', ...' if len(folders) > 10 else ''})"
    if listing.skipped:
        message += f"; {len(listing.skipped)} image files cannot be used, first {listing.skipped[0].path!r}"
    if listing.other_extensions:
        others = ", ".join(f"{count} x {name}" for name, count in listing.other_extensions.most_common(5))
        message += f"; other files: {others}"
    return f"{message}. Images must end in one of: {', '.join(sorted(EXTENSIONS))}. Received: directory={directory!r}"
