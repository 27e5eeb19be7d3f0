"""Where a command line's model comes from: a file that Keras saved, or a function of the user's."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from memfit.cli.option_types import positive, shape
from memfit.errors import ArgumentError

BACKENDS = ("tensorflow", "jax", "torch")

_SAVED = (".keras", ".h5", ".hdf5")
_FORMS = "Pass a saved model (model.keras), module:function or script.py:function."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a command about a model: which, at which shapes, on which framework."""
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
    parser.add_argument(
        "--backend", choices=BACKENDS, help="the framework under Keras (default: KERAS_BACKEND, or Keras' own choice)"
    )


def loaded(source: str) -> Any:
    """The model that a command line names.

    Args:
        source: A file that ``model.save`` wrote, or ``module:function`` or ``script.py:function``, whose function takes no
            arguments and returns a compiled model.

    Raises:
        ArgumentError: There is no such file, module or function, or it fails.
    """
    if source.endswith(_SAVED):
        return _from_file(Path(source))
    owner, colon, name = source.rpartition(":")
    if not colon or not owner or not name:
        raise ArgumentError(f"The model is not one that memfit can find. Received: {source!r}. {_FORMS}")
    function = getattr(_module(owner, source), name, None)
    if not callable(function):
        raise ArgumentError(f"{owner} has no function {name!r}. Received: {source!r}. {_FORMS}")
    return function()


def _from_file(path: Path) -> Any:
    if not path.exists():
        raise ArgumentError(f"There is no such file. Received: {str(path)!r}. {_FORMS}")
    import keras

    try:
        return keras.saving.load_model(path)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ArgumentError(
            f"Keras could not load the model: {str(error).strip()} Received: {str(path)!r}. Where it has layers of your own, "
            "pass script.py:function, with a function that builds and compiles it."
        ) from error


def _module(name: str, source: str) -> ModuleType:
    """The module, found from the working folder as ``python`` would."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise ArgumentError(f"There is no such file. Received: {source!r}. {_FORMS}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise ArgumentError(f"{name} cannot be imported ({error}). Received: {source!r}. {_FORMS}") from error
