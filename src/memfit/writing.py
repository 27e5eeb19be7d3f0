"""Files for people, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from memfit.errors import ArgumentError


def written(path: str | os.PathLike[str], document: str) -> Path:
    """Writes a text and gives its path.

    Raises:
        ArgumentError: The file cannot be written; what was there before is as it was.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_text(document, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArgumentError(
            f"The file cannot be written ({error}). Received: {str(target)!r}. Pass another path."
        ) from error
    return target
