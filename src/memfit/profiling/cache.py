"""What analyses found, kept on disk: the same model, shapes, dtypes, backend and versions are analysed once.

One small JSON file an answer, named by the hash of everything that it depends on, under the user's cache folder (or
``MEMFIT_CACHE_DIR``; set to nothing, nothing is kept). A model whose description or whose own classes' source cannot be had
is never kept: it could change and keep its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import keras
import platformdirs

from memfit.backends import keras_optimizer, keras_saving, keras_seam
from memfit.backends.protocol import Backend
from memfit.records import Estimate, Split, estimate_from_fields

_T = TypeVar("_T")

_FOLDER = "MEMFIT_CACHE_DIR"
_VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "TF_XLA_FLAGS", "JAX_ENABLE_X64", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables of the environment that change what a step takes."""

_SEPARATE = "\n"
_FURTHEST_FACTOR = 2.0
"""A trial and an analysis further apart than this did not measure the same thing."""


@dataclasses.dataclass(frozen=True)
class Correction:
    """What a trial of one step of a model taught about its analysis.

    Attributes:
        predicted: Bytes that the analysis said.
        measured: Bytes that the trial took.
    """

    predicted: int
    measured: int

    @property
    def factor(self) -> float:
        """What the analysis of the model's steps is to be multiplied by, between a half and two."""
        factor = self.measured / max(1, self.predicted)
        return min(_FURTHEST_FACTOR, max(1 / _FURTHEST_FACTOR, factor))

    def applied(self, step: Estimate) -> Estimate:
        """The estimate of another step of the same model, corrected; the margin stays."""
        return dataclasses.replace(
            step, bytes=int(self.factor * step.bytes), source=f"{step.source}, corrected by a trial"
        )


def key(model: Any, spec: Any, split: Split | None, kind: str, backend: Backend) -> str | None:
    """The name of the answer to one question about a step, or None where the model cannot be told from another."""
    described = _description(model)
    if described is None or not os.environ.get(_FOLDER, "on"):
        return None
    device = backend.device_memory()
    parts = [
        described,
        repr(spec),
        repr(split),
        repr(keras_seam.remat_of(model)),
        repr(keras_seam.precision_of(model)),
        repr((keras_seam.has_own_pages(model), keras_optimizer.is_updating_in_groups(model.optimizer))),
        kind,
        backend.name,
        getattr(sys.modules.get(backend.name), "__version__", ""),
        keras.__version__,
        importlib.metadata.version("memfit"),
        "cpu" if device is None else f"{device.kind} {device.total_bytes}",
        str(os.cpu_count()),
        *(os.environ.get(name, "") for name in _VARIABLES),
    ]
    return hashlib.sha256(_SEPARATE.join(parts).encode()).hexdigest()


def correction_key(model: Any, backend: Backend) -> str | None:
    """The name of what trials taught about a model at any batch size and split; None as for ``key``."""
    return key(model, "any shapes", None, "train", backend)


def load(name: str | None) -> Estimate | None:
    """The answer that ``store`` kept under the name; None where there is none, or none that can be read."""
    return _read(name, estimate_from_fields)


def store(name: str | None, estimate: Estimate) -> None:
    """Keeps an answer; where the folder cannot be written, nothing is kept."""
    _write(name, estimate.to_json())


def load_correction(name: str | None) -> Correction | None:
    """What ``store_correction`` kept under the name, or None."""
    return _read(name, lambda fields: Correction(int(fields["predicted"]), int(fields["measured"])))


def store_correction(name: str | None, correction: Correction) -> None:
    """Keeps what a trial taught; where the folder cannot be written, nothing is kept."""
    _write(name, json.dumps(dataclasses.asdict(correction)))


def _read(name: str | None, from_fields: Callable[[Any], _T]) -> _T | None:
    if name is None:
        return None
    try:
        return from_fields(json.loads(_path(name).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(name: str | None, document: str) -> None:
    if name is None:
        return
    path = _path(name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(document)
            os.replace(draft, path)
        except OSError:
            Path(draft).unlink(missing_ok=True)


def _path(name: str) -> Path:
    folder = os.environ.get(_FOLDER) or platformdirs.user_cache_dir("memfit")
    return Path(folder) / "estimates" / f"{name}.json"


def _description(model: Any) -> str | None:
    """The model in words: architecture, compile arguments, variables, and the source of classes that are not Keras'."""
    try:
        sources = [inspect.getsource(owner) for _, owner in sorted(keras_seam.own_objects(model).items())]
        document = keras_saving.description(model) | {"jit": [str(model.jit_compile), model.run_eagerly]}
        text = json.dumps(document, sort_keys=True, default=str)
    except (TypeError, ValueError, OSError, NotImplementedError, AttributeError, RecursionError):
        return None
    variables = [
        (v.path, tuple(v.shape), v.dtype, v.trainable)
        for v in (*model.variables, *keras_seam.optimizer_variables(model))
    ]
    return _SEPARATE.join([text, repr(variables), *sources])
