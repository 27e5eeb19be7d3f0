"""What analyses found, kept on disk: the same model, shapes, dtypes, backend and versions are analysed once.

One small JSON file an answer, named by the hash of everything that it depends on, under the user's cache folder (or
``MEMFIT_CACHE_DIR``; set to nothing, nothing is kept). A model whose description or whose own classes' source cannot be had
is never kept: it could change and keep its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import platformdirs

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend, StepKind
from memfit.records import Estimate, Split, estimate_from_fields

_FOLDER = "MEMFIT_CACHE_DIR"
_VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "TF_XLA_FLAGS", "JAX_ENABLE_X64", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables of the environment that change what a step takes."""

_SEPARATE = "\n"


def key(model: Any, spec: Any, split: Split | None, kind: StepKind, backend: Backend) -> str | None:
    """The name of the answer for one step, or None where the model cannot be told from another."""
    described = _description(model)
    if described is None or not os.environ.get(_FOLDER, "on"):
        return None
    device = backend.device_memory()
    parts = [
        described,
        repr(spec),
        repr(split),
        repr(keras_seam.remat_of(model)),
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


def load(name: str | None) -> Estimate | None:
    """The answer that ``store`` kept under the name; None where there is none, or none that can be read."""
    if name is None:
        return None
    try:
        return estimate_from_fields(json.loads(_path(name).read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def store(name: str | None, estimate: Estimate) -> None:
    """Keeps an answer; where the folder cannot be written, nothing is kept."""
    if name is None:
        return
    path = _path(name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(estimate.to_json())
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
        document = {
            "model": keras.saving.serialize_keras_object(model),
            "compiled": model.get_compile_config(),
            "jit": [str(model.jit_compile), model.run_eagerly],
        }
        text = json.dumps(document, sort_keys=True, default=str)
    except (TypeError, ValueError, OSError, NotImplementedError, AttributeError, RecursionError):
        return None
    variables = [(v.path, tuple(v.shape), v.dtype, v.trainable) for v in (*model.variables, *model.optimizer.variables)]
    return _SEPARATE.join([text, repr(variables), *sources])
