"""``memfit advise``: what would make a model smaller, each with the bytes that it saves; trains nothing."""

from __future__ import annotations

import argparse
import os
import sys

from memfit.cli import model_sources

NAME = "advise"
HELP = "show what would make a model smaller, and what each change saves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    model_sources.add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="look at one change of each kind")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints the advice, what saves most first.

    Returns:
        0.

    Raises:
        MemfitError: The model cannot be had, is not compiled, has no graph, or leaves its shapes open.
    """
    if arguments.backend is not None:
        os.environ["KERAS_BACKEND"] = arguments.backend
    from memfit.shrink import advise

    model = model_sources.loaded(arguments.model)
    advice = advise(
        model, batch_size=arguments.batch_size, shapes=arguments.input_shape, quick=arguments.quick, verbose=1
    )
    print(advice.to_json() if arguments.json else advice, file=sys.stdout)
    return 0
