"""``memfit advise``: what would make a model smaller, each with the bytes that it saves; trains nothing."""

from __future__ import annotations

import argparse
import os
import sys

from memfit.cli import model_sources
from memfit.cli.option_types import positive, shape
from memfit.cli.plan import BACKENDS

NAME = "advise"
HELP = "show what would make a model smaller, and what each change saves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a saved model (.keras), or module:function or script.py:function that returns a compiled model",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="samples of one update (default: %(default)s)"
    )
    parser.add_argument(
        "--input-shape",
        type=shape,
        action="append",
        metavar="D1,D2,...",
        help="of one sample, once for each input, where the model leaves dimensions open",
    )
    parser.add_argument("--quick", action="store_true", help="look at one change of each kind")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="the framework under Keras (default: KERAS_BACKEND, or Keras' own choice)"
    )
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
