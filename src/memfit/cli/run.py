"""``memfit run``: an unmodified script under a supervisor, its ``fit`` calls planned, kept, and gone on with after a kill."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from memfit.cli.option_types import num_bytes
from memfit.errors import ArgumentError

NAME = "run"
HELP = "run a script with its fit calls planned and protected; a kill for memory costs no work"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.usage = "memfit run [OPTIONS] (SCRIPT | -m MODULE) [ARGUMENTS]"
    parser.add_argument(
        "--budget", metavar="BYTES", help='like "12 GiB", or a preset (default: what this machine allows)'
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="LEVER", help="a lever that may change the result"
    )
    parser.add_argument(
        "--snapshots",
        type=Path,
        metavar="DIR",
        help="keep the snapshots there: the same command goes on from them if all of this is ended (default: a private folder)",
    )
    parser.add_argument(
        "--max-restarts", type=_not_negative, default=20, metavar="N", help="start again at most N times (default: 20)"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module, as for python -m")
    parser.add_argument("script", metavar="SCRIPT", help="what python would be given")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS", help="the script's own")


def run(arguments: argparse.Namespace) -> int:
    """Runs the script.

    Returns:
        Its exit code.

    Raises:
        ArgumentError: There is no such system for it, or the folder is one of another command.
    """
    if not hasattr(signal, "sigtimedwait"):
        raise ArgumentError(
            f"memfit run needs Linux. Received: {sys.platform}. Call memfit.fit(..., snapshots=FOLDER) in the script instead."
        )
    from memfit.running.supervise import Job, supervise

    options: dict[str, Any] = {} if arguments.budget is None else {"budget": _budget(arguments.budget)}
    if arguments.allow:
        options["allow"] = arguments.allow
    command = [*(["-m"] if arguments.module else []), arguments.script, *arguments.arguments]
    return supervise(
        Job(command, options, arguments.snapshots, arguments.max_restarts, explain=lambda: _seen(arguments))
    )


def _seen(arguments: argparse.Namespace) -> list[str]:
    """What ``memfit doctor`` sees in the script, a sentence each."""
    from memfit.examining import code

    try:
        found = code.examined(code.file_of_module(arguments.script) if arguments.module else Path(arguments.script))
    except ArgumentError:
        return []
    return [" ".join(str(one).split()) for one in found if one.kind != "fact"]


def _budget(text: str) -> int | str:
    """Bytes, so that a text that cannot be read is refused before the script is started; presets stay names."""
    try:
        return num_bytes(text)
    except argparse.ArgumentTypeError:
        from memfit.budgeting.presets import preset

        if preset(text) is None:
            raise ArgumentError(
                f'--budget must be bytes like "12 GiB" or a preset. Received: --budget {text!r}.'
            ) from None
        return text


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0. Received: {text!r}")
    return int(text)
