"""Which image files a folder of class folders holds, listed once, sorted, with empty files set aside."""

from __future__ import annotations

import array
import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from memfit import errors
from memfit.data.broken_files import SkippedFile
from memfit.data.file_table import FileTable
from memfit.data.name_sorting import NameSorter, PackedNames

EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".webp"})

_MOST_BYTES = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class FolderScan:
    """What a folder holds.

    Attributes:
        files: The image files that are not empty, by class, then by name.
        sizes: Bytes of each file on disk, 4 GiB at the most, shape (num_files,).
        skipped: Empty files and links to nothing.
        visited: Every folder that was looked into.
    """

    files: FileTable
    sizes: np.ndarray
    skipped: tuple[SkippedFile, ...]
    visited: tuple[str, ...] = ()


@dataclasses.dataclass
class _Listing:
    counts: list[int] = dataclasses.field(default_factory=list)
    sizes: array.array[int] = dataclasses.field(default_factory=lambda: array.array("I"))
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
    paths = [os.path.join(directory, folder) for folder in folders]
    names = PackedNames(_names(listing, paths, follow_links, report))
    if not len(names):
        raise errors.ArgumentError(_no_images(directory, folders, listing))
    labels = np.repeat(np.arange(len(folders), dtype=np.int32), listing.counts)
    files = FileTable(directory, folders, names, labels)
    sizes = np.frombuffer(listing.sizes, np.uint32)
    return FolderScan(files, sizes, tuple(listing.skipped), (directory, *listing.visited))


def _names(listing: _Listing, folders: list[str], follow_links: bool, report: Callable[[int], None]) -> Iterator[bytes]:
    """Names of the images, by class, then by name; what else is known of them goes into the listing.

    Entries of a folder are not kept: with what the system says of each file one takes a kilobyte.
    """
    num_seen = 0
    for folder in folders:
        sorter = NameSorter()
        skipped: list[SkippedFile] = []
        for name, entry in _walk(folder, follow_links, listing.visited):
            size = _size(name, entry, skipped, listing.other_extensions)
            if size:
                sorter.add(os.fsencode(name), size)
            num_seen += 1
            report(num_seen)
        listing.skipped += sorted(skipped, key=lambda file: file.path)
        before = len(listing.sizes)
        for encoded, size in sorter.sorted():
            listing.sizes.append(min(size, _MOST_BYTES))
            yield encoded
        listing.counts.append(len(listing.sizes) - before)


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


def _size(
    name: str, entry: os.DirEntry[str], skipped: list[SkippedFile], other_extensions: collections.Counter[str]
) -> int:
    """Bytes of an image; 0 where there is none to be read, and why."""
    extension = os.path.splitext(name)[1].lower()
    if extension not in EXTENSIONS:
        other_extensions[extension or "no extension"] += 1
        return 0
    try:
        size = entry.stat().st_size
    except OSError as error:
        skipped.append(SkippedFile(entry.path, error.strerror or type(error).__name__))
        return 0
    if size == 0:
        skipped.append(SkippedFile(entry.path, "the file is empty"))
    return size


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
