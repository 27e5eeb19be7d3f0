"""``memfit.shrink.distill``: a small model learns from a large one, by Keras' own Distiller and ``memfit.fit``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from memfit import fitting
from memfit.backends import keras_seam
from memfit.errors import ArgumentError, DoesNotFitError, MemfitError
from memfit.profiling import layers as layer_bytes
from memfit.reporting.console import say
from memfit.shrink import fine_tuning, teaching
from memfit.shrink.slimming import slim

TEACHER = ("auto", "disk", "step", "half")
_FREE_SHARE = 0.5


def distill(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    how: str = "auto",
    temperature: float = 3.0,
    student_loss_weight: float = 0.5,
    **fit_arguments: Any,
) -> Any:
    """Trains a student on labels and on what a teacher says, with Keras' Distiller through ``memfit.fit``.

    The teacher costs memory or time in one of three ways. "disk": what it says of every sample is computed once, batch by
    batch, into a file that the training reads by index; the teacher is not in the training step at all. "step": its forward
    pass is part of the step, which ``memfit.fit`` plans as a whole and splits where that is exact. "half": the same with a
    copy of the teacher in bfloat16.

    Args:
        teacher: A built model; it is left as it is.
        student: A built and compiled model with the teacher's inputs and outputs; it is trained, as ``fit`` would. Or "auto":
            the teacher at half its width, compiled as the teacher is.
        data: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, or a dataset of batches.
        how: "disk", "step", "half", or "auto": from disk where the data are arrays that stay the same from epoch to epoch and
            the disk has room, else in the step, and in half precision where that does not fit.
        temperature: Of the softened outputs (Hinton et al., 2015).
        student_loss_weight: Of the labels' loss; the rest is the teacher's.
        **fit_arguments: What else ``memfit.fit`` takes: ``epochs``, ``batch_size``, ``budget``, ...

    Returns:
        The student.

    Raises:
        ArgumentError: Teacher and student differ in inputs or outputs, one is not built, the student is not compiled.
        MemfitError: This Keras has no Distiller.

    Example:
        >>> import keras, numpy as np, memfit
        >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> teacher.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> data = np.ones((32, 8), "float32"), np.zeros(32, "int32")
        >>> memfit.shrink.distill(teacher, "auto", data, verbose=0).layers[0].units
        32
    """
    if how not in TEACHER:
        raise ArgumentError(f"`how` is one of {', '.join(TEACHER)}. Received: how={how!r}.")
    if not hasattr(keras, "distillation"):
        raise MemfitError(f"Keras {keras.__version__} has no Distiller. Install keras 3.12 or newer.")
    arguments = fine_tuning.fit_data(data, "distill")
    quiet = fit_arguments.get("verbose") == 0
    if isinstance(student, str) and student == "auto":
        student = slim(teacher, 0.5, verbose=fit_arguments.get("verbose", 1))
    check_pair(teacher, student)
    losses = teaching.loss_for(teacher, student, temperature)
    settings = {"distillation_losses": losses, "student_loss_weight": student_loss_weight}
    way, reason = _chosen(how, teacher, (arguments, fit_arguments))
    with _frozen(teacher):
        if way == "step":
            try:
                distiller = teaching.distiller(teacher, student, settings)
                if how == "auto":
                    fitting.plan(distiller, **{**arguments, **fit_arguments, "verbose": 0})
            except DoesNotFitError as error:
                if how != "auto":
                    raise
                way, reason = "half", f"the teacher in full precision does not fit: {error}"
        say(f"memfit: distilling {teacher.name} into {student.name}: {_TEXT[way]} ({reason})", quiet=quiet)
        if way == "disk":
            _from_disk((teacher, student), settings, arguments, fit_arguments)
        else:
            if way == "half":
                distiller = teaching.distiller(teaching.in_half_precision(teacher), student, settings)
            fine_tuning.tuned(distiller, arguments, fit_arguments)
    return student


_TEXT = {
    "disk": "the teacher's outputs computed once, to disk",
    "step": "the teacher in the training step",
    "half": "the teacher in the training step, in bfloat16",
}


def check_pair(teacher: Any, student: Any) -> None:
    """Raises ArgumentError where the student cannot learn from the teacher."""
    for role, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model) or not model.built or not getattr(model, "inputs", None):
            raise ArgumentError(
                f"The {role} must be a built Keras model with known inputs. Received: {getattr(model, 'name', model)!r}. "
                "Add a keras.Input as its first layer."
            )
    fine_tuning.check_compiled(student, "distill")
    for what in ("inputs", "outputs"):
        taught, learning = ([tuple(one.shape) for one in getattr(model, what)] for model in (teacher, student))
        if taught != learning:
            raise ArgumentError(
                f"Teacher and student must have the same {what}. Received: {taught} of the teacher and {learning} of the "
                "student. Give the student's last layer the teacher's width, or slim the teacher: student='auto'."
            )


def _chosen(how: str, teacher: Any, run: tuple[Mapping[str, Any], Mapping[str, Any]]) -> tuple[str, str]:
    """The way that the teacher is asked, and why."""
    x, epochs = run[0]["x"], run[1].get("epochs", 1)
    possible = keras_seam.are_arrays((x,)) and not isinstance(x, dict) and len(teacher.outputs) == 1
    if how == "disk" and not possible:
        raise ArgumentError(
            "From disk the data must be arrays, and the teacher have one output. Received: "
            f"{type(x).__name__} and {len(teacher.outputs)} outputs. Take how='step'."
        )
    if how != "auto":
        return how, "as asked"
    if not possible:
        return "step", "the data may differ from epoch to epoch"
    size = keras_seam.flatten(x)[0].shape[0] * 4 * int(np.prod([one or 1 for one in teacher.output_shape[1:]]))
    if size > _FREE_SHARE * shutil.disk_usage(tempfile.gettempdir()).free:
        return "step", "the disk has no room for the teacher's outputs"
    held = layer_bytes.variable_bytes(teacher.variables)
    return "disk", f"once instead of {epochs} times, and {held:,} bytes of weights less in use by the step"


def _from_disk(
    pair: tuple[Any, Any], settings: Mapping[str, Any], arguments: Mapping[str, Any], fit_arguments: Mapping[str, Any]
) -> None:
    teacher, student = pair
    batch_size = fit_arguments.get("batch_size") or 32
    with tempfile.TemporaryDirectory() as folder:

        def told(x: Any, name: str) -> list[Any]:
            return [*keras_seam.flatten(x), teaching.outputs_on_disk(teacher, x, Path(folder) / name, batch_size)]

        distiller = teaching.reading_distiller(teacher, student, settings)
        fed = {**arguments, "x": told(arguments["x"], "train.npy")}
        validation = fit_arguments.get("validation_data")
        if isinstance(validation, (tuple, list)):
            fit_arguments = {**fit_arguments, "validation_data": (told(validation[0], "valid.npy"), *validation[1:])}
        fine_tuning.tuned(distiller, fed, fit_arguments)


@contextlib.contextmanager
def _frozen(teacher: Any) -> Iterator[None]:
    """Inside, the Distiller may freeze the teacher; afterwards each layer is as trainable as it was."""
    layers = [teacher, *keras_seam.flat_layers(teacher)]
    before = [layer.trainable for layer in layers]
    try:
        yield
    finally:
        for layer, trainable in zip(layers, before, strict=True):
            layer.trainable = trainable
