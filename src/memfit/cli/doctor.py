"""``memfit doctor``: what is wrong with the machine's set-up, and, given a script or a module, with its code."""

from __future__ import annotations

import argparse
from pathlib import Path

from memfit.errors import ArgumentError

NAME = "doctor"
HELP = "look at the machine and its set-up, and at a script's code, for what takes memory needlessly"

EXIT_FOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "script", nargs="?", type=Path, metavar="SCRIPT", help="a Python file to look at; it is not run"
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="a module to look at instead; it is not imported")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was found.

    Returns:
        0 where there is nothing to mend; 1 where there is.

    Raises:
        ArgumentError: The script or module cannot be read.
    """
    from memfit.examining import code, machine
    from memfit.examining.findings import Findings

    if arguments.script is not None and arguments.module is not None:
        raise ArgumentError(
            f"A script or a module, not both. Received: {str(arguments.script)!r} and -m {arguments.module!r}. Leave one out."
        )
    path = arguments.script if arguments.module is None else code.file_of_module(arguments.module)
    seen = [] if path is None else code.examined(path)
    found = Findings((*machine.examined(), *seen))
    print(found.to_json() if arguments.json else found)
    return EXIT_FOUND if found.num_warnings else 0
