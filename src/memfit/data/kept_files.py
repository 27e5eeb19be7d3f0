"""Files that a loader makes once and reads from then on, named by what they were made from.

They lie in the first folder of ``disk.folders`` that is a disk, or in the one that a loader is given. A file appears under
its name only when it is complete. One is kept for each source and way of reading; when the source changes it is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from memfit import errors, units
from memfit.data import disk

_RESERVE = 256 * units.MIB


def folder(kind: str, given: str | os.PathLike[str] | None = None) -> Path:
    """Where files of a kind are kept: in ``given``, or in memfit's cache folder, in memory only where there is no disk."""
    if given is not None:
        return Path(given)
    return (disk.roomy_folder(0)[0] or disk.folders()[0]) / kind


def names(sources: Iterable[str], reading: object) -> tuple[str, str]:
    """The names of what is made of files.

    Returns:
        Two parts of a name: one for the files and the way of reading them, and one for the state that the files are in.

    Example:
        >>> first, second = names([__file__], "rows"), names([__file__], "texts")
        >>> first[0] != second[0], first[1] == second[1]
        (True, True)
    """
    paths = [os.path.abspath(source) for source in sources]
    states = [(path, status.st_size, status.st_mtime_ns) for path in paths for status in (os.stat(path),)]
    return _digest((paths, reading)), _digest(states)


@contextlib.contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file to write in the folder of ``path``, which gets that name if nothing is raised, and is removed otherwise.

    Raises:
        MemfitError: The disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".draft")
    except OSError as error:
        raise errors.MemfitError(_unwritable(path, error)) from error
    os.close(descriptor)
    try:
        yield Path(name)
        os.replace(name, path)
    except OSError as error:
        raise errors.MemfitError(_unwritable(path, error)) from error
    finally:
        Path(name).unlink(missing_ok=True)


def remove_others(path: Path, first: str) -> None:
    """Removes what was made of the same source in an earlier state: files that begin with ``first``, but ``path``'s."""
    for other in path.parent.glob(f"{first}-*"):
        if not other.name.startswith(path.stem) and other.suffix != ".draft":
            with contextlib.suppress(OSError):
                other.unlink()


def check_room(directory: Path, num_bytes: int, *, cure: str) -> None:
    """Raises MemfitError where the disk does not hold so many bytes more."""
    there = directory
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if num_bytes + _RESERVE > free:
        raise errors.MemfitError(
            f"About {units.text(num_bytes)} are to be written to {directory}, where {units.text(free)} are free. {cure}"
        )


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"{path.parent} cannot be written: {error.strerror or error}. "
        "Pass another folder as `cache_dir`, or set MEMFIT_CACHE_DIR to one."
    )


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]
