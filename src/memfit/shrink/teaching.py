"""A teacher beside its student: the Distiller of Keras around both, and cheaper ways to hear the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_saving, keras_seam
from memfit.shrink import rebuilding

_HALF = "bfloat16"


def loss_for(teacher: Any, student: Any, temperature: float) -> Any:
    """The distillation loss: softened classes where there are several, the outputs themselves elsewhere."""
    losses = keras.tree.flatten(student.loss)
    names = [one if isinstance(one, str) else getattr(one, "name", getattr(one, "__name__", "")) for one in losses]
    classes = all("crossentropy" in str(name) and "binary" not in str(name) for name in names)
    if not classes or any((output.shape[-1] or 1) == 1 for output in teacher.outputs):
        return keras.distillation.LogitsDistillation(temperature=1.0, loss=_for_each(teacher, "mse"))
    kind = _OfProbabilities if _gives_probabilities(losses) else keras.distillation.LogitsDistillation
    # Not by its name: Keras 3.15 makes a function of that, and takes the divergence of logits as they are.
    return kind(temperature=temperature, loss=_for_each(teacher, keras.losses.KLDivergence()))


def _for_each(teacher: Any, loss: Any) -> Any:
    return loss if len(teacher.outputs) == 1 else [loss] * len(teacher.outputs)


def _gives_probabilities(losses: list[Any]) -> bool:
    """Keras' crossentropies take probabilities unless they are told that logits come."""
    return not any(getattr(loss, "from_logits", False) or _config_says(loss) for loss in losses)


def _config_says(loss: Any) -> bool:
    get_config = getattr(loss, "get_config", None)
    return bool(get_config and get_config().get("from_logits", False))


if hasattr(keras, "distillation"):

    class _OfProbabilities(keras.distillation.LogitsDistillation):
        """The loss of Keras for models that give probabilities, whose logarithms are logits."""

        def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
            logits = [
                keras.tree.map_structure(
                    lambda one: keras.ops.log(keras.ops.maximum(one, keras.config.epsilon())), each
                )
                for each in (teacher_outputs, student_outputs)
            ]
            return super().compute_loss(*logits, **kwargs)


def distiller(teacher: Any, student: Any, settings: Mapping[str, Any], *, compiled_as: Any = None) -> Any:
    """Keras' Distiller, compiled as the student is; it trains the student's own weights with the student's optimizer."""
    made = keras.distillation.Distiller(teacher, student, **settings)
    original = student if compiled_as is None else compiled_as
    with keras_saving.no_imports(), keras.saving.custom_object_scope(keras_seam.own_objects(original)):
        config = keras.saving.deserialize_keras_object(original.get_compile_config())
    metrics = config.get("metrics")
    made.compile(
        optimizer=config["optimizer"],
        loss=config["loss"],
        metrics=metrics if metrics is None or isinstance(metrics, (list, tuple)) else [metrics],
        jit_compile=original.jit_compile,
        run_eagerly=original.run_eagerly,
    )
    return made


def reading_distiller(teacher: Any, student: Any, settings: Mapping[str, Any]) -> Any:
    """A Distiller whose inputs are the student's and, last, what the teacher said of them."""
    inputs = [keras.Input(batch_shape=one.shape, dtype=one.dtype) for one in student.inputs]
    said = keras.Input(batch_shape=teacher.outputs[0].shape, dtype=student.outputs[0].dtype)
    reads = keras.Model([*inputs, said], keras.layers.Identity()(said), name="teacher_on_disk")
    learns = keras.Model([*inputs, said], student(_alone(inputs)), name=student.name)
    return distiller(reads, learns, settings, compiled_as=student)


def outputs_on_disk(teacher: Any, x: Any, path: Path, batch_size: int) -> np.ndarray:
    """What the teacher says of every sample, as a memory map; one batch in memory at a time."""
    count = keras_seam.flatten(x)[0].shape[0]
    written: Any = None
    for start in range(0, count, batch_size):
        rows = keras_seam.rows(x, slice(start, start + batch_size))
        said = np.asarray(teacher.predict_on_batch(rows))
        if written is None:
            written = np.lib.format.open_memmap(path, "w+", said.dtype, (count, *said.shape[1:]))
        written[start : start + len(said)] = said
    written.flush()
    return np.load(path, mmap_mode="r")


def in_half_precision(teacher: Any) -> Any:
    """A copy of the teacher with weights and activations in bfloat16, whose outputs are what the teacher's are."""

    pairs: list[tuple[Any, Any]] = []

    def replace(layer: Any) -> Any:
        policy = getattr(layer, "dtype_policy", None)
        if policy is None or policy.compute_dtype != "float32":
            return None
        pairs.append((layer, rebuilding.from_config(layer, _halved(layer.get_config()))))
        return pairs[-1][1]

    def finish() -> None:
        for old, new in pairs:
            rebuilding.copy_weights(old, new)

    half = rebuilding.rebuilt(teacher, replace, finish=finish, compile_config=None)
    inputs = _alone([keras.Input(batch_shape=one.shape, dtype=one.dtype) for one in teacher.inputs])
    said = half(inputs)
    cast = [keras.ops.cast(one, old.dtype) for one, old in zip(keras.tree.flatten(said), teacher.outputs, strict=True)]
    return keras.Model(inputs, _alone(cast), name=f"{teacher.name}_half")


def _alone(tensors: list[Any]) -> Any:
    """One tensor alone, several as a list."""
    return tensors[0] if len(tensors) == 1 else tensors


def _halved(config: Any) -> Any:
    """The configuration with every dtype policy of it, inner layers' included, in half precision."""
    if isinstance(config, list):
        return [_halved(one) for one in config]
    if not isinstance(config, dict):
        return config
    entries = {name: _halved(one) for name, one in config.items() if name != "build_config"}
    return {**entries, "dtype": _HALF} if "dtype" in entries else entries
