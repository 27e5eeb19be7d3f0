"""Accuracy against bytes of the ways to make a model smaller, on the backend that KERAS_BACKEND names.

    KERAS_BACKEND=jax python benchmarks/shrinking.py [--models digits digits_mlp images] [--seeds 1] [--epochs 12]
    KERAS_BACKEND=jax python benchmarks/shrinking.py --dropout

Each model is trained, then slimmed, pruned, quantized and distilled, beside the untouched model, the untouched model trained
on for as long as the changed ones are (so that no gain is the extra epochs'), and a model of the same size trained from
scratch for all of those epochs. ``measured`` is the highest anonymous memory of a fresh child process that trains one epoch,
less that of the same process before it loads the model. ``--dropout`` measures a wide model with and without its Dropout
layers: what they save, as folklore has it, or cost.

Targets: ``prune 0.5`` within 1 point of ``untouched`` at no more than half its measured peak; ``int8`` within 0.5 point at a
quarter of the weights; ``distilled`` above ``scratch``. Rows go to ``benchmarks/results/shrinking-BACKEND.jsonl``; the last
row of each model has the targets beside what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import memfit
from memfit.budgeting.usage import reading
from memfit.data import synthetic_images
from memfit.guarding.watch import Watcher
from memfit.shrink import costs, measuring

BATCH = 256
STEPS = 2
L = keras.layers

Data = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def digits_data() -> Data:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return _split((found.images[..., None] / 16).astype("float32"), found.target.astype("int32"))


def images_data() -> Data:
    """Figures of ten kinds as the demo draws them, 32 x 32."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic_images.write_image_folder(folder, num_images=1500, image_size=(40, 40))
        pipeline = memfit.data.image_folder(folder, image_size=(32, 32), batch_size=500, shuffle=False, rescale=1 / 255)
        batches = [pipeline[i] for i in range(len(pipeline))]
    return _split(
        np.concatenate([np.asarray(b[0]) for b in batches]), np.concatenate([np.asarray(b[1]) for b in batches])
    )


def _split(x: np.ndarray, y: np.ndarray) -> Data:
    order = np.random.default_rng(0).permutation(len(x))
    x, y, cut = x[order], y[order].astype("int32"), int(0.7 * len(x))
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def cnn(shape: tuple[int, ...]) -> Any:
    """A small residual network."""
    image = keras.Input(shape)
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(32, 3, padding="same")(image)))
    x = L.Add()([x, L.Conv2D(32, 3, padding="same", activation="relu")(x)])
    x = L.MaxPooling2D()(x)
    x = L.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = L.Dropout(0.3)(L.GlobalAveragePooling2D()(x))
    return keras.Model(image, L.Dense(10)(L.Dense(64, activation="relu")(x)))


def mlp(shape: tuple[int, ...]) -> Any:
    """Two wide layers."""
    image = keras.Input(shape)
    x = L.Dense(512, activation="relu")(L.Flatten()(image))
    x = L.Dropout(0.3)(L.Dense(512, activation="relu")(L.Dropout(0.3)(x)))
    return keras.Model(image, L.Dense(10)(x))


MODELS: dict[str, tuple[Callable[[tuple[int, ...]], Any], Callable[[], Data]]] = {
    "digits": (cnn, digits_data),
    "digits_mlp": (mlp, digits_data),
    "images": (cnn, images_data),
}


def compiled(model: Any) -> Any:
    model.compile(
        keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def variants(make: Callable[[], Any], train: tuple[np.ndarray, np.ndarray], epochs: int) -> dict[str, Any]:
    """Every model, trained."""
    settings: dict[str, Any] = {"batch_size": 32, "verbose": 0}
    model = compiled(make())
    memfit.fit(model, *train, epochs=epochs, **settings)
    more = max(1, epochs // 2)
    found = {"untouched": model}
    found["trained on"] = longer = memfit.shrink.slim(model, 1.0, verbose=0)
    memfit.fit(longer, *train, epochs=STEPS * more, **settings)
    found["slim 0.5"] = memfit.shrink.slim(model, 0.5, verbose=0)
    memfit.fit(found["slim 0.5"], *train, epochs=STEPS * more, **settings)
    found["prune 0.5"] = memfit.shrink.prune(model, train, sparsity=0.5, steps=STEPS, epochs=more, **settings)
    found["zeros 0.8"] = memfit.shrink.prune(
        model, train, sparsity=0.8, structured=False, steps=STEPS, epochs=more, **settings
    )
    found["scratch"] = fresh(found["slim 0.5"])
    memfit.fit(found["scratch"], *train, epochs=epochs + STEPS * more, **settings)
    found["distilled"] = fresh(found["slim 0.5"])
    memfit.shrink.distill(model, found["distilled"], train, epochs=epochs + STEPS * more, **settings)
    found["int8"] = memfit.shrink.quantize(model, "int8", verbose=0).model
    found["int4"] = memfit.shrink.quantize(model, "int4", verbose=0).model
    return found


def fresh(model: Any) -> Any:
    """The same layers with new weights."""
    return compiled(keras.models.clone_model(model))


def wide(shape: tuple[int, ...], *, dropout: bool) -> Any:
    """Activations that outweigh the weights, and a Dropout after each or none."""
    x = image = keras.Input(shape)
    for _ in range(6):
        x = L.Dense(1024, activation="relu")(x)
        x = L.Dropout(0.5)(x) if dropout else x
    return keras.Model(image, L.Dense(10)(x))


def measured_peak(model: Any, batch: int = BATCH) -> int:
    """Bytes that training takes in a child process on top of what it held before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        command = [sys.executable, __file__, "--child", str(path), "--batch", str(batch)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return int(run.stdout.strip().splitlines()[-1])


def child(path: str, batch: int) -> None:
    """Trains one epoch of synthetic data and prints the peak."""
    warm = compiled(keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(2, 3), L.Flatten(), L.Dense(2)]))
    warm.fit(np.zeros((4, 8, 8, 1), "float32"), np.zeros(4, "int32"), verbose=0)
    # Keras' serialization imports TensorFlow where it is installed; that is no part of the model.
    keras.saving.serialize_keras_object(warm)
    before = reading().host_bytes
    model = keras.saving.load_model(path)
    x = np.zeros((4 * batch, *model.input_shape[1:]), "float32")
    with Watcher(interval=0.002) as watcher:
        model.fit(x, np.zeros(len(x), "int32"), batch_size=batch, verbose=0)
    print(watcher.peak.host_bytes - before)


def run(name: str, seeds: int, epochs: int) -> list[dict[str, Any]]:
    """The rows of one model, medians over seeds."""
    make, data = MODELS[name]
    train, test = data()
    scores: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        found = variants(lambda: make(train[0].shape[1:]), train, epochs)
        for variant, model in found.items():
            scores.setdefault(variant, []).append(model.evaluate(*test, verbose=0, return_dict=True)["accuracy"])
    rows = []
    for row in measuring.measured(found, {"x": test[0], "y": test[1]}, BATCH):
        trained = scores.get(row.name)
        peak = None if row.training is None else measured_peak(found[row.name])
        rows.append(
            {
                "model": name,
                "variant": row.name,
                "accuracy": None if trained is None else round(statistics.median(trained), 4),
                "accuracies": None if trained is None else [round(one, 4) for one in trained],
                "parameters": row.parameters,
                "weights_bytes": sum(int(np.prod(w.shape)) * _itemsize(w) for w in found[row.name].weights),
                "disk_bytes": row.disk,
                "training_predicted_bytes": row.training,
                "training_measured_bytes": peak,
                "inference_predicted_bytes": row.inference,
                "samples_per_second": round(row.samples_per_second),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    rows.append({"model": name, "variant": "targets", **targets({row["variant"]: row for row in rows})})
    print(json.dumps(rows[-1]), flush=True)
    conditions = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "batch": BATCH,
        "seeds": seeds,
        "epochs": epochs,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    return [{**row, **conditions} for row in rows]


def _itemsize(weight: Any) -> int:
    return {"int8": 1, "uint8": 1, "int4": 1}.get(str(keras.backend.standardize_dtype(weight.dtype)), 4)


def targets(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was aimed at beside what came out, in points and ratios."""
    whole, pruned, small = rows["untouched"], rows["prune 0.5"], rows["int8"]
    return {
        "prune_points_lost": round(100 * (whole["accuracy"] - pruned["accuracy"]), 2),
        "prune_points_target": 1.0,
        "prune_measured_peak_ratio": round(pruned["training_measured_bytes"] / whole["training_measured_bytes"], 3),
        "prune_predicted_peak_ratio": round(pruned["training_predicted_bytes"] / whole["training_predicted_bytes"], 3),
        "prune_peak_target": 0.5,
        "int8_points_lost": round(100 * (whole["accuracy"] - small["accuracy"]), 2),
        "int8_points_target": 0.5,
        "int8_weights_ratio": round(small["weights_bytes"] / whole["weights_bytes"], 3),
        "int8_weights_target": 0.25,
        "distilled_points_above_scratch": round(100 * (rows["distilled"]["accuracy"] - rows["scratch"]["accuracy"]), 2),
    }


def dropout(batch: int = 4096) -> list[dict[str, Any]]:
    """What Dropout layers cost: the same model with and without them."""
    models = {
        name: compiled(wide((256,), dropout=name == "with dropout")) for name in ("with dropout", "without dropout")
    }
    rows = [
        {
            "model": "wide",
            "variant": variant,
            "batch": batch,
            "backend": keras.backend.backend(),
            "training_predicted_bytes": costs.cost(one, batch).training,
            "training_measured_bytes": measured_peak(one, batch),
        }
        for variant, one in models.items()
    ]
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return rows


def written(rows: list[dict[str, Any]], folder: Path) -> None:
    """Puts the rows in the place of those of the same model."""
    path = folder / f"shrinking-{keras.backend.backend()}.jsonl"
    old = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in old if json.loads(line)["model"] != rows[0]["model"]]
    path.write_text("".join(f"{line}\n" for line in [*kept, *map(json.dumps, rows)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.batch)
        return
    if arguments.dropout:
        written(dropout(), arguments.out)
        return
    for name in arguments.models:
        written(run(name, arguments.seeds, arguments.epochs), arguments.out)


if __name__ == "__main__":
    main()
