"""What a supervised process sets up before the script begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memfit import protecting
from memfit.guarding import interception, session
from memfit.probing import entry


def prepare(folder: str, parent: int, options: dict[str, Any]) -> None:
    """Ends with the supervisor, is killed before it, joins the session, and protects Keras once the script imports it.

    Args:
        folder: Of the session.
        parent: The supervisor's process id.
        options: Of ``memfit.protect``.
    """
    entry.end_with(parent)
    entry.be_first_victim()
    session.begin(Path(folder))
    interception.when_imported("keras", lambda: protecting.begin(**options))
