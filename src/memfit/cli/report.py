"""``memfit report``: the page of a run from the file that ``history.memfit.save`` or a MemoryMonitor wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from memfit.errors import ArgumentError

NAME = "report"
HELP = "write the HTML page of a run from its JSON file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="what history.memfit.save(FILE) or a MemoryMonitor wrote"
    )
    parser.add_argument("--out", type=Path, metavar="PAGE", help="where the page goes (default: beside FILE, as .html)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints where it is.

    Returns:
        0.

    Raises:
        ArgumentError: The file is no report, was cut short or is of another version; the page cannot be written.
    """
    from memfit.reporting import page
    from memfit.writing import written

    try:
        document = arguments.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"The report cannot be read ({error}). Received: {str(arguments.file)!r}. Write it with history.memfit.save(FILE)."
        ) from error
    print(written(arguments.out or arguments.file.with_suffix(".html"), page.of_document(document)))
    return 0
