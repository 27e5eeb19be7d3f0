"""The list of a large folder's files, kept for the next run: it is as long as no folder in it has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memfit.data import kept_files
from memfit.data.file_table import FileTable
from memfit.data.folder_scan import FolderScan
from memfit.data.name_sorting import PackedNames

LEAST_FILES = 20_000
"""Fewer files are listed again in less than a second."""

_SETTLED_NS = 2_000_000_000
"""A folder that changed so shortly before may change once more without a new time."""


def scanned(
    directory: str, way: object, scan: Callable[[], FolderScan], *, least_files: int = LEAST_FILES
) -> FolderScan:
    """What ``scan`` finds, or found when the folders were as they are now.

    Files that were changed in place, or removed through another name of their folder, are noticed when they are read.

    Args:
        directory: The folder.
        way: What else the result depends on.
        scan: Lists the folder.
        least_files: The result is kept where there are at least so many, and nothing was left out.
    """
    first, second = kept_files.names([directory], way)
    path = kept_files.folder("scans") / f"{first}-{second}.npz"
    kept = _load(path)
    if kept is not None:
        return kept
    begun = time.time_ns()
    found = scan()
    times = {folder: os.stat(folder).st_mtime_ns for folder in found.visited}
    if len(found.files) >= least_files and not found.skipped and max(times.values()) < begun - _SETTLED_NS:
        _store(path, found, times)
        kept_files.remove_others(path, first)
    return found


def _store(path: Path, found: FolderScan, times: dict[str, int]) -> None:
    with kept_files.draft(path) as draft, open(draft, "wb") as file:
        np.savez(
            file,
            names=found.files.names.joined,
            ends=found.files.names.ends,
            labels=found.files.labels,
            sizes=found.sizes,
            directory=np.array(found.files.directory),
            folders=np.array(found.files.folders),
            watched=np.array(list(times)),
            times=np.array(list(times.values()), np.int64),
        )


def _load(path: Path) -> FolderScan | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            for folder, changed in zip(kept["watched"].tolist(), kept["times"].tolist(), strict=True):
                if os.stat(folder).st_mtime_ns != changed:
                    return None
            names = PackedNames.of(kept["names"], kept["ends"])
            files = FileTable(str(kept["directory"]), kept["folders"].tolist(), names, kept["labels"])
            return FolderScan(files, kept["sizes"], ())
    except (OSError, ValueError, KeyError):
        return None
