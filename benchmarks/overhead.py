"""What ``memfit.fit`` costs beside ``model.fit``: in one run, interleaved, on the backend that KERAS_BACKEND names.

Two questions. With no pressure: the ratio of epoch times (target <= 1.02; on TensorFlow with arrays <= 1.00). In 2, 4 and 8
parts: the throughput beside plain Keras run at the micro-batch size (target >= 0.95), which makes as many passes over as
many samples but one optimizer update for each.

    KERAS_BACKEND=jax python benchmarks/overhead.py [--repeats 7] [--epochs 2] [--models cnn] [--out DIR]

Prints a table and appends one JSON row a measurement to ``benchmarks/results/overhead-BACKEND.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import memfit

BATCH = 64


def mlp() -> tuple[Any, np.ndarray, np.ndarray]:
    model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(512, activation="relu"), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model, np.random.default_rng(0).normal(size=(40_000, 256)).astype("float32"), labels(40_000)


def cnn() -> tuple[Any, np.ndarray, np.ndarray]:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model, np.random.default_rng(0).normal(size=(1_024, 64, 64, 3)).astype("float32"), labels(1_024)


def lstm() -> tuple[Any, np.ndarray, np.ndarray]:
    model = keras.Sequential([keras.Input((40, 32)), keras.layers.LSTM(96), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model, np.random.default_rng(0).normal(size=(4_096, 40, 32)).astype("float32"), labels(4_096)


def labels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, count).astype("int32")


MODELS: dict[str, Callable[[], tuple[Any, np.ndarray, np.ndarray]]] = {"mlp": mlp, "cnn": cnn, "lstm": lstm}


class EpochSeconds(keras.callbacks.Callback):
    """The wall time of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def epoch_seconds(fit: Callable[..., Any], epochs: int, **arguments: Any) -> list[float]:
    """Epoch times of one call, without the first epoch: it traces and compiles."""
    timer = EpochSeconds()
    fit(epochs=epochs + 1, verbose=0, callbacks=[timer], **arguments)
    return timer.seconds[1:]


def interleaved(ours: Callable[[], list[float]], theirs: Callable[[], list[float]], repeats: int) -> dict[str, Any]:
    """Medians and the median ratio of pairs, each pair measured one after the other, in alternating order."""
    pairs = []
    for index in range(repeats):
        first, second = (ours, theirs) if index % 2 == 0 else (theirs, ours)
        a, b = statistics.median(first()), statistics.median(second())
        pairs.append((a, b) if index % 2 == 0 else (b, a))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "memfit_seconds": statistics.median(a for a, _ in pairs),
        "keras_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "repeats": repeats,
    }


def no_pressure(name: str, repeats: int, epochs: int) -> dict[str, Any]:
    """Epoch times of memfit.fit over those of model.fit, the same model, batch and data."""
    ours, x, y = MODELS[name]()
    theirs, *_ = MODELS[name]()
    return interleaved(
        lambda: epoch_seconds(lambda **more: memfit.fit(ours, x, y, batch_size=BATCH, **more), epochs),
        lambda: epoch_seconds(lambda **more: theirs.fit(x, y, batch_size=BATCH, **more), epochs),
        repeats,
    )


def in_parts(name: str, parts: int, repeats: int, epochs: int) -> dict[str, Any]:
    """Epoch times of memfit.fit in parts over those of plain Keras at the micro-batch size."""
    size = BATCH // parts
    ours, x, y = MODELS[name]()
    theirs, *_ = MODELS[name]()
    return interleaved(
        lambda: epoch_seconds(
            lambda **more: memfit.fit(ours, x, y, batch_size=BATCH, micro_batch_size=size, **more), epochs
        ),
        lambda: epoch_seconds(lambda **more: theirs.fit(x, y, batch_size=size, **more), epochs),
        repeats,
    )


def rows(models: list[str], repeats: int, epochs: int) -> Iterator[dict[str, Any]]:
    """One row a measurement."""
    machine = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "device": "cpu" if memfit.budget().device_bytes is None else "gpu",
        "batch_size": BATCH,
    }
    for name in models:
        measured = no_pressure(name, repeats, epochs)
        yield {**machine, "model": name, "question": "no pressure", "parts": 1, **measured}
        for parts in (2, 4, 8):
            measured = in_parts(name, parts, repeats, epochs)
            yield {**machine, "model": name, "question": "in parts", "parts": parts, **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs for each row")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a run, one warm-up not counted")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"overhead-{keras.backend.backend()}.jsonl"
    with path.open("a") as file:
        for row in rows(options.models, options.repeats, options.epochs):
            file.write(json.dumps(row) + "\n")
            file.flush()
            throughput = 1 / row["ratio"]
            print(
                f"{row['backend']:>10} {row['model']:>5} {row['question']:>11} {row['parts']} parts: time ratio "
                f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), throughput {throughput:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
