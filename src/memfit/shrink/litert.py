"""A model as a LiteRT file, by Keras' own export: in this process on TensorFlow, else in a child process that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras

from memfit.backends import keras_saving, keras_seam
from memfit.errors import ArgumentError, MemfitError

_SUFFIX = ".tflite"
_CHILD = """
import sys, keras
from memfit.shrink import litert
litert.convert(keras.saving.load_model(sys.argv[1]), sys.argv[2])
"""


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises ArgumentError where no LiteRT file can be written."""
    if Path(path).suffix != _SUFFIX or not Path(path).absolute().parent.is_dir():
        raise ArgumentError(
            f"`export` is a file in a folder that exists, with the suffix {_SUFFIX}. Received: export={str(path)!r}."
        )


def export(model: Any, path: str | os.PathLike[str]) -> int:
    """Writes the file whole or not at all; returns its bytes.

    Raises:
        MemfitError: TensorFlow is missing, or cannot convert the model.
    """
    check_path(path)
    target = Path(path).absolute()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        if keras_seam.framework() == "tensorflow":
            convert(model, made)
        else:
            _in_child(model, Path(folder), made)
        os.replace(made, target)
    return target.stat().st_size


def convert(model: Any, path: str | os.PathLike[str]) -> None:
    """Converts on TensorFlow, weights as int8 of dynamic range.

    Raises:
        MemfitError: The model cannot be converted.
    """
    from memfit import backends

    try:
        backends.current().export_litert(model, str(path))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise MemfitError(f"LiteRT cannot take the model {model.name!r}: {error}") from error


def _in_child(model: Any, folder: Path, made: Path) -> None:
    saved = folder / "model.keras"
    with keras_saving.no_imports():
        keras.saving.save_model(model, saved, include_optimizer=False)
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(saved), str(made)],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    saved.unlink()
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise MemfitError(
            f'The LiteRT file could not be made: {last} It takes TensorFlow: `pip install "memfit[tensorflow]"`; layers of '
            "your own must be registered with keras.saving.register_keras_serializable in an importable module."
        )
