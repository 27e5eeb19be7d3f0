"""The files that a user means: a path, a pattern, a folder, or a list of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Any

from memfit import errors


def listed(files: Any, *, suffixes: Sequence[str], argument: str = "files") -> list[str]:
    """Paths, each once; those of a folder or a pattern sorted, those of a list in its order.

    Args:
        files: A path, a pattern with ``*``, a folder, or a list of these.
        suffixes: What the files of a folder must end in; names that start with a dot are left out.
        argument: What the user calls it.

    Raises:
        ArgumentError: It is no path, or nothing is there.
    """
    given = [files] if isinstance(files, (str, os.PathLike)) else files
    if not isinstance(given, (list, tuple)) or not all(isinstance(path, (str, os.PathLike)) for path in given):
        raise errors.ArgumentError(
            f"`{argument}` must be a path, a pattern like 'data/*.csv', a folder, or a list of them. "
            f"Received: {argument}={files!r:.200}"
        )
    found = list(dict.fromkeys(path for one in given for path in _of(os.fspath(one), tuple(suffixes), argument)))
    if not found:
        raise errors.ArgumentError(f"`{argument}` names no files. Received: {argument}={files!r:.200}")
    return found


def _of(path: str, suffixes: tuple[str, ...], argument: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        found = sorted(
            os.path.join(parent, name)
            for parent, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith((".", "_"))
        )
        wanted = f"files that end in {', '.join(suffixes)}"
    else:
        found = sorted(one for one in glob.glob(path, recursive=True) if os.path.isfile(one))
        wanted = "such file"
    if not found:
        raise errors.ArgumentError(
            f"`{argument}`: there is no {wanted} at {path!r}, which is {os.path.abspath(path)!r}. "
            f"Received: {argument}={path!r}. Check the spelling and the working directory."
        )
    return found
