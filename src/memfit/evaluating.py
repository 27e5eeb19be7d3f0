"""``memfit.predict`` and ``memfit.evaluate``: Keras' own loops, on batches that fit, with the predictions kept once."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil

from memfit import backends, budgeting
from memfit.backends import keras_seam
from memfit.backends.host_bound import HostBound
from memfit.backends.protocol import Backend, StepKind
from memfit.errors import ArgumentError, DoesNotFitError
from memfit.executing import arguments as arguments_of
from memfit.executing import feeding
from memfit.executing.forward import Collected, ForwardStep, OutputsInLogs
from memfit.executing.results import Rows
from memfit.guarding import recover
from memfit.predicting import Predictions
from memfit.profiling import batches as batches_of
from memfit.profiling.layers import tensor_bytes
from memfit.records import Budget, TensorSpec
from memfit.reporting.console import say
from memfit.units import text

_HELD_SHARE = 0.5
"""Of the room, what predictions may take as arrays; more of them becomes a file."""

_IN_MEMORY = ("tmpfs", "ramfs")


def predict(
    model: Any,
    x: Any,
    batch_size: int | None = None,
    verbose: Any = "auto",
    steps: int | None = None,
    callbacks: Any = None,
    *,
    budget: Any = None,
    out: str | os.PathLike[str] | None = None,
) -> Any:
    """The predictions of a model as ``model.predict`` gives them, within the memory that is there.

    Each batch's predictions go straight to where they stay: Keras keeps them all, and then once more joined. They come
    back as arrays where they take at most half of the room, as memory maps otherwise.

    Args:
        model: A Keras model; it need not be compiled.
        x: What ``model.predict`` takes: arrays, a dataset, a generator.
        batch_size: Samples of a batch at most; less go through together where less fit.
        verbose: As for ``model.predict``.
        steps: Batches to predict.
        callbacks: As for ``model.predict``; where fewer samples go through together there are more batches of an array.
        budget: As for ``memfit.fit``.
        out: The ``.npy`` file to write the predictions to. For several outputs a folder, with one file each, named by
            the output's key or number. A file that is there is replaced when the new one is whole.

    Returns:
        Arrays in the structure and dtype of ``model.predict``. With ``out``, read-only memory maps of the files. Where
        they do not fit, writable maps of files that have no name and go with the arrays.

    Raises:
        ArgumentError: An argument cannot work.
        DoesNotFitError: Not even one sample fits, or there is no room for the predictions on the disk either.
        OutOfMemoryError: Memory ran out, and nothing smaller was left to try.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> memfit.predict(model, np.ones((64, 4), "float32"), verbose=0).shape
        (64, 1)
    """
    arguments_of.check_keras_model(model)
    given = {"x": x, "batch_size": batch_size, "steps": steps, "verbose": verbose, "callbacks": callbacks}
    call = _prepared(model, "predict", given, budget)
    collected = Collected(_makes_rows(call, None if out is None else Path(out)))
    step = ForwardStep(model, call.backend, most=call.part_size, collected=collected, bound=call.bound)
    listening = _listening(callbacks, collected)
    try:
        finished = _run(model, call, step, {**call.arguments, "callbacks": listening})
        return collected.finish(finished)
    finally:
        collected.abandon()
        if isinstance(listening, keras.callbacks.CallbackList):
            listening.callbacks[:] = [one for one in listening.callbacks if not isinstance(one, OutputsInLogs)]


def evaluate(
    model: Any,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    verbose: Any = "auto",
    sample_weight: Any = None,
    steps: int | None = None,
    callbacks: Any = None,
    return_dict: bool = False,
    *,
    budget: Any = None,
) -> Any:
    """Loss and metrics of a model as ``model.evaluate`` gives them, within the memory that is there.

    Args:
        model: A compiled Keras model.
        x: As for ``model.evaluate``.
        y: As for ``model.evaluate``.
        batch_size: Samples of a batch at most; less go through together where less fit.
        verbose: As for ``model.evaluate``.
        sample_weight: As for ``model.evaluate``.
        steps: Batches to evaluate.
        callbacks: As for ``model.evaluate``.
        return_dict: As for ``model.evaluate``.
        budget: As for ``memfit.fit``.

    Returns:
        What ``model.evaluate`` returns. A loss that divides by a mask's or weights' sum is Keras' mean over batches, and so
        depends on how many samples go through together, as it does there.

    Raises:
        ArgumentError: An argument cannot work.
        DoesNotFitError: Not even one sample fits.
        OutOfMemoryError: Memory ran out, and nothing smaller was left to try.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        >>> model.compile("adam", "mse")
        >>> memfit.evaluate(model, np.ones((64, 4), "float32"), np.ones((64, 1), "float32"), verbose=0)
        1.0
    """
    arguments_of.check_model(model)
    given = {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": batch_size, "steps": steps}
    call = _prepared(model, "test", {**given, "verbose": verbose, "callbacks": callbacks}, budget)
    step = ForwardStep(model, call.backend, most=call.part_size, collected=None, bound=call.bound)
    return _run(model, call, step, {**call.arguments, "return_dict": return_dict})


@dataclasses.dataclass(frozen=True)
class _Call:
    """All that a run needs.

    Attributes:
        kind: "test" or "predict".
        arguments: Of ``model.evaluate`` or ``model.predict``.
        part_size: Samples of the data's batches that go through together; None where the batches are ours, or fit whole.
        num_rows: Samples that will come; None where the data does not tell.
        output_bytes: Of all predictions; None where that is not known.
        held_bytes: What predictions may take as arrays.
        backend: The current backend.
        bound: What makes a step fail before the kernel ends the process, where there is such a thing.
    """

    kind: StepKind
    arguments: dict[str, Any]
    part_size: int | None
    num_rows: int | None
    output_bytes: int | None
    held_bytes: int
    backend: Backend
    bound: HostBound | None


def _prepared(model: Any, kind: StepKind, given: dict[str, Any], budget: Any) -> _Call:
    """Checks, looks at the data, and decides how many samples go through together."""
    _check_batch_size(given["batch_size"])
    backend = backends.current()
    found_budget = budgeting.budget(budget, backend=backend)
    held = int(_HELD_SHARE * max(0, found_budget.host_bytes - budgeting.reading().host_bytes))
    steps = given.pop("steps")
    found, arguments = batches_of.described({**given, "steps_per_epoch": steps})
    num_rows = _num_rows(found, steps)
    output_bytes = None
    size = found.batch_size
    if found.spec is not None:
        arguments_of.check_fits_model(model, found.spec)
        _build(model, kind, found)
        row_bytes = _row_bytes(model, found.spec[0]) if kind == "predict" else 0
        output_bytes = None if row_bytes is None or num_rows is None else row_bytes * num_rows
        if not keras_seam.is_distributed(model):
            size = _fitting(model, kind, found, _ceiling(found_budget, output_bytes, held), backend, given)
    arguments, part_size = _sized(arguments, found, size, num_rows)
    bound = recover.bound_on_host(backend, model)
    return _Call(kind, arguments, part_size, num_rows, output_bytes, held, backend, bound)


def _check_batch_size(batch_size: Any) -> None:
    if batch_size is not None:
        whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
        if not whole or batch_size < 1:
            raise ArgumentError(
                f"`batch_size` must be a whole number of samples, 1 or more. Received: batch_size={batch_size!r}."
            )


def _num_rows(found: batches_of.Batches, steps: int | None) -> int | None:
    if found.num_samples is None or steps is None or found.batch_size is None:
        return found.num_samples
    return min(found.num_samples, steps * found.batch_size)


def _build(model: Any, kind: StepKind, found: batches_of.Batches) -> None:
    if kind == "test" and not keras_seam.is_built(model):
        keras_seam.symbolic_build(model, found.spec)
    elif not keras_seam.has_weights(model):
        keras_seam.build_by_call(model, found.sample(2)[0])


def _row_bytes(model: Any, x: Any) -> int | None:
    """Bytes of the predictions for one sample; None where the model's own code decides what they are."""
    if keras_seam.overrides(model, "predict_step"):
        return None
    specs = keras_seam.output_specs(model, x)
    if specs is None:
        return None
    return tensor_bytes([TensorSpec(shape[1:], dtype) for shape, dtype in specs])


def _ceiling(budget: Budget, output_bytes: int | None, held: int) -> int:
    """What a step may take beside the predictions that are held as arrays."""
    arrays = held if output_bytes is None else output_bytes if output_bytes <= held else 0
    return budget.limiting_bytes - (arrays if budget.device_bytes is None else 0)


def _fitting(
    model: Any, kind: StepKind, found: batches_of.Batches, ceiling: int, backend: Backend, given: dict[str, Any]
) -> int:
    quiet = given["verbose"] == 0
    wanted = found.batch_size or 1
    prediction = Predictions(model, found.spec, backend, quiet=quiet, queued=found.queued)
    size, peak = prediction.forward_batch_size(kind, wanted, ceiling)
    doing = "Prediction" if kind == "predict" else "Evaluation"
    if size == 0 and peak is not None and peak.bytes <= ceiling:
        # There is no smaller step, and a call that Keras itself would carry out is not refused for a margin.
        say(f"memfit: {doing.lower()} fits only without the margin of its prediction, {peak}", quiet=quiet)
        return 1
    if size == 0:
        assert peak is not None
        raise DoesNotFitError(
            f"{doing} does not fit: one sample at a time needs {text(peak.upper)}, there is {text(ceiling)} for it. "
            "Pass a larger `budget`, or smaller samples."
        )
    if size < wanted:
        whole = f"a batch of {wanted} does not fit {text(ceiling)}"
        say(f"memfit: {doing.lower()} goes through in batches of {size}: {whole}", quiet=quiet)
    return size


def _sized(
    arguments: dict[str, Any], found: batches_of.Batches, size: int | None, num_rows: int | None
) -> tuple[dict[str, Any], int | None]:
    """The arguments for batches of a size; and the size of parts, where the batches are the data's."""
    steps = arguments.pop("steps_per_epoch")
    if found.num_samples is None:
        return {**arguments, "steps": steps}, None if size == found.batch_size else size
    names = [name for name in ("x", "y", "sample_weight") if name in arguments]
    if num_rows != found.num_samples:
        cut = [keras_seam.rows(arguments[name], slice(0, num_rows)) for name in names]
        arguments = {**arguments, **dict(zip(names, cut, strict=True))}
    fed, _ = feeding.streamed({**arguments, "batch_size": size, "shuffle": False})
    kept = {name: fed[name] for name in arguments}
    return {**kept, "batch_size": size, "steps": None}, None


def _run(model: Any, call: _Call, step: ForwardStep, arguments: dict[str, Any]) -> Any:
    around = call.backend.around(model, call.kind, step)
    try:
        with recover.let_go(call.bound):
            return (model.predict if call.kind == "predict" else model.evaluate)(**arguments)
    except BaseException:
        around.rescue()
        raise
    finally:
        around.take_off()
        for failure in step.failures:
            say(f"memfit: memory ran out and fewer samples went through together ({failure})", quiet=False)


def _listening(callbacks: Any, collected: Collected) -> Any:
    """The user's callbacks with one before them that completes what they are told."""
    if not callbacks:
        return callbacks
    first = OutputsInLogs(collected)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks.insert(0, first)
        return callbacks
    return [first, *(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks])]


def _makes_rows(call: _Call, out: Path | None) -> Callable[[int, str], Rows]:
    """What makes the place of each output: a file that was asked for, an array, or a file without a name."""
    if out is None:
        if call.output_bytes is not None and call.output_bytes > call.held_bytes:
            _check_temporary(call)
        share = call.held_bytes if call.output_bytes is None or call.output_bytes <= call.held_bytes else 0
        return lambda number, name: Rows(None, num_rows=call.num_rows, limit_bytes=share, name=f"output {name}")
    folder = out.parent if out.suffix == ".npy" else out
    if out.suffix == ".npy" and not folder.is_dir():
        raise ArgumentError(
            f"`out` must be in a folder that is there. Received: out={str(out)!r}. Make {str(folder)!r}."
        )
    _check_disk(folder if folder.is_dir() else folder.absolute().parent, call, f"`out` ({str(out)!r})")

    def make(number: int, name: str) -> Rows:
        if out.suffix == ".npy" and (number or name != "0"):
            raise ArgumentError(
                f"`out` must be a folder for a model with several outputs: one file is written for each. "
                f"Received: out={str(out)!r}. Leave out the '.npy'."
            )
        folder.mkdir(parents=True, exist_ok=True)
        path = out if out.suffix == ".npy" else folder / f"{name}.npy"
        return Rows(path, num_rows=call.num_rows, limit_bytes=0, name=f"output {name}")

    return make


def _check_temporary(call: _Call) -> None:
    folder = Path(tempfile.gettempdir())
    need = text(call.output_bytes or 0)
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: -len(mount.mountpoint))
    kind = next((mount.fstype for mount in mounts if folder.is_relative_to(mount.mountpoint)), "")
    if kind in _IN_MEMORY:
        raise DoesNotFitError(
            f"The predictions take {need}, and {text(call.held_bytes)} may be held in memory; the folder for temporary files, "
            f"{folder}, is in memory as well. Pass `out=`, a .npy file on a disk."
        )
    _check_disk(folder, call, f"the folder for temporary files, {folder},")
    say(f"memfit: the predictions take {need} and are kept in a file", quiet=call.arguments.get("verbose") == 0)


def _check_disk(folder: Path, call: _Call, where: str) -> None:
    if call.output_bytes is None or not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if call.output_bytes > free:
        raise DoesNotFitError(
            f"The predictions take {text(call.output_bytes)}, and {where} has {text(free)} free. "
            "Pass `out=` on a disk with more room, or predict in pieces."
        )
