"""What a model is worth beside others: numbers, bytes, speed and accuracy, measured the same way for each."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_saving, keras_seam
from memfit.errors import ArgumentError
from memfit.profiling import layers
from memfit.shrink import costs
from memfit.shrink.rebuilding import parameters
from memfit.units import text

_ROUNDS = 3
_TIMED_SAMPLES = 512


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model.

    Attributes:
        name: As the caller calls it.
        parameters: Numbers in its weights.
        disk: Bytes of the file that ``model.save`` writes, less those of the optimizer's state.
        training: Predicted peak of training in bytes, beside what the process holds anyway; None for a quantized model,
            which is not trained.
        inference: The same of prediction; None where it cannot be analysed.
        samples_per_second: Of prediction, the best of three rounds.
        score: The first compiled metric on the data, or the loss; None where the model is not compiled or there are no labels.
        score_name: Its name.
    """

    name: str
    parameters: int
    disk: int
    training: int | None
    inference: int | None
    samples_per_second: float
    score: float | None
    score_name: str

    def cells(self) -> tuple[str, ...]:
        """As a row of a table."""
        return (
            self.name,
            f"{self.parameters:,}",
            text(self.disk),
            "-" if self.training is None else text(self.training),
            "-" if self.inference is None else text(self.inference),
            f"{self.samples_per_second:,.0f}/s",
            "-" if self.score is None else f"{self.score:.4f}",
        )


HEADINGS = ("model", "parameters", "disk", "training peak", "inference peak", "speed", "score")


def table(rows: Sequence[Measured]) -> str:
    """The rows below their headings, in columns."""
    score = next((row.score_name for row in rows if row.score is not None), "score")
    lines = [(*HEADINGS[:-1], score), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def measured(models: Mapping[str, Any], data: Mapping[str, Any], batch_size: int) -> tuple[Measured, ...]:
    """Measures models on the same data; speed in rounds over all of them, so that a busy moment hits each alike.

    Args:
        models: Built models by name.
        data: ``x``, ``y`` and ``sample_weight`` as ``model.fit`` takes them.
        batch_size: Of every step.

    Raises:
        ArgumentError: A model is not built.
    """
    for name, model in models.items():
        if not isinstance(model, keras.Model) or not model.built:
            raise ArgumentError(f"Only built Keras models can be measured. Received: {name!r}. Call it once on data.")
    speeds = _speeds(models, data, batch_size)
    return tuple(_one(name, model, (data, batch_size, speeds[name])) for name, model in models.items())


def _one(name: str, model: Any, rest: tuple[Mapping[str, Any], int, float]) -> Measured:
    data, batch_size, speed = rest
    score_name, score = _score(model, data, batch_size)
    training, inference = _peaks(model, batch_size)
    return Measured(name, parameters(model), disk_bytes(model), training, inference, speed, score, score_name)


def disk_bytes(model: Any) -> int:
    """Bytes of the file that ``model.save`` writes, less those of the optimizer's state."""
    with tempfile.TemporaryDirectory() as folder, keras_saving.no_imports():
        path = Path(folder) / "model.keras"
        model.save(path)
        optimizer = getattr(model, "optimizer", None)
        return path.stat().st_size - (layers.variable_bytes(optimizer.variables) if optimizer is not None else 0)


def _peaks(model: Any, batch_size: int) -> tuple[int | None, int | None]:
    """Of training and of prediction; None where there is none, or where shapes are left open."""
    if not model.compiled or not getattr(model, "inputs", None):
        return None, None
    try:
        training = None if is_quantized(model) else costs.cost(model, batch_size).training
        return training, costs.prediction_peak(model, batch_size)
    except ArgumentError:
        return None, None


def is_quantized(model: Any) -> bool:
    """Whether any layer is."""
    return any(getattr(layer, "quantization_mode", None) for layer in keras_seam.flat_layers(model))


def _score(model: Any, data: Mapping[str, Any], batch_size: int) -> tuple[str, float | None]:
    if not model.compiled or (data.get("y") is None and keras_seam.are_arrays((data["x"],))):
        return "score", None
    size = {"batch_size": batch_size} if keras_seam.are_arrays((data["x"],)) else {}
    found = model.evaluate(**data, **size, return_dict=True, verbose=0)
    names = [name for name in found if name != "loss"] or ["loss"]
    return names[0], float(found[names[0]])


def _speeds(models: Mapping[str, Any], data: Mapping[str, Any], batch_size: int) -> dict[str, float]:
    x = some_samples(data["x"], _TIMED_SAMPLES)
    count = keras_seam.flatten(x)[0].shape[0]
    best = dict.fromkeys(models, 0.0)
    for model in models.values():
        model.predict(x, batch_size=batch_size, verbose=0)
    for _ in range(_ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            model.predict(x, batch_size=batch_size, verbose=0)
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def some_samples(x: Any, count: int) -> Any:
    """The first samples of arrays or of a pipeline, as arrays."""
    if keras_seam.are_arrays((x,)):
        return keras_seam.rows(x, slice(0, count))
    taken: list[Any] = []
    for batch in x:
        inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
        taken.append(keras_seam.map_leaves(lambda leaf: np.asarray(keras.ops.convert_to_numpy(leaf)), inputs))
        if sum(keras_seam.flatten(one)[0].shape[0] for one in taken) >= count:
            break
    leaves = [np.concatenate(parts)[:count] for parts in zip(*map(keras_seam.flatten, taken), strict=True)]
    return keras.tree.pack_sequence_as(taken[0], leaves)
