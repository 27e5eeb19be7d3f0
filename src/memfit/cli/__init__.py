"""The command ``memfit``: one file a command, and this file to find it. Importing it imports no framework."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from memfit import __version__
from memfit.cli import advise, demo, doctor, plan, report, run
from memfit.errors import MemfitError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class Command(Protocol):
    """A module of this package that is a command.

    Attributes:
        NAME: What the user types after ``memfit``.
        HELP: What it does, in a line.
    """

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's own options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Does it; returns the exit code."""


COMMANDS: tuple[Command, ...] = (demo, run, plan, report, doctor, advise)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: What follows ``memfit`` on the command line; ``sys.argv[1:]`` if left out.

    Returns:
        The exit code: the command's own; 2 for an error that memfit raised, in one line on standard error; 130 after
        Ctrl-C.

    Raises:
        SystemExit: From ``argparse``: with 0 after ``--help`` and ``--version``, with 2 for an unknown option.

    Example:
        >>> main(["demo", "--epochs", "0"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    arguments = parser().parse_args(argv)
    try:
        return arguments.command.run(arguments)
    except MemfitError as error:
        print(f"memfit {arguments.command.NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"memfit {arguments.command.NAME}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; the chosen one is ``command`` of what it parses."""
    root = argparse.ArgumentParser(prog="memfit", description="Keras training that fits in the memory that is there.")
    root.add_argument("--version", action="version", version=f"memfit {__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(own)
        own.set_defaults(command=command)
    return root
