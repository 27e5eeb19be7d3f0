"""Runs that are killed at random moments end with the weights and the history of a run that nothing has disturbed.

    KERAS_BACKEND=jax python benchmarks/kills.py --kills 60 --out benchmarks/results/kills-jax.jsonl

This process imports the framework and runs nothing on it; every attempt is a fork of it, killed by SIGKILL after a random
time: while it plans, while it trains, while it writes a snapshot. An attempt goes on where the one before was killed. One row
for each kind of data: kills, how many of them inside the writing of a snapshot, and the largest difference in weights,
optimizer state and logs to the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["MEMFIT_CACHE_DIR"] = ""
# Attempts differ in nothing that is compiled: JAX compiles once for all of them.
_COMPILED = tempfile.TemporaryDirectory(prefix="memfit-kills-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import memfit  # noqa: E402
from memfit import fitting  # noqa: E402
from memfit.guarding import keeping as keeping_of  # noqa: E402

TOLERANCE = 1e-5
NUM_SAMPLES, BATCH_SIZE, EPOCHS = 100, 16, 6
BATCHES = -(-NUM_SAMPLES // BATCH_SIZE)

ROWS = np.random.default_rng(0).normal(size=(NUM_SAMPLES, 6)).astype("float32")
TARGETS = ROWS[:, :1] ** 2


class Shuffled(keras.utils.PyDataset):
    """A data set as many users write it: it shuffles its own order when an epoch has ended."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.order = np.arange(NUM_SAMPLES)

    def __len__(self) -> int:
        return BATCHES

    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)

    def __getitem__(self, index: int) -> Any:
        rows = self.order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
        return ROWS[rows], TARGETS[rows]


def stream() -> Iterator[Any]:
    """A generator that draws its batches."""
    while True:
        rows = np.random.randint(0, NUM_SAMPLES, BATCH_SIZE)
        yield ROWS[rows], TARGETS[rows]


def pipeline() -> Any:
    """A ``tf.data`` pipeline that is shuffled anew in every epoch."""
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices((ROWS, TARGETS))
    return rows.shuffle(NUM_SAMPLES, seed=5).batch(BATCH_SIZE)


def loader() -> Any:
    """A torch ``DataLoader`` that shuffles."""
    import torch

    rows = torch.utils.data.TensorDataset(torch.from_numpy(ROWS), torch.from_numpy(TARGETS))
    return torch.utils.data.DataLoader(rows, batch_size=BATCH_SIZE, shuffle=True)


KINDS = {
    "arrays": lambda: {"x": ROWS, "y": TARGETS, "batch_size": BATCH_SIZE},
    "micro-batches": lambda: {"x": ROWS, "y": TARGETS, "batch_size": BATCH_SIZE, "micro_batch_size": 4},
    "PyDataset": lambda: {"x": Shuffled()},
    "PyDataset with threads": lambda: {"x": Shuffled(workers=2)},
    "generator": lambda: {"x": stream(), "steps_per_epoch": BATCHES},
    "steps across epochs": lambda: {"x": ROWS, "y": TARGETS, "batch_size": BATCH_SIZE, "steps_per_epoch": 3},
    "tf.data": lambda: {"x": pipeline()},
    "DataLoader": lambda: {"x": loader()},
}
ONLY = {"tf.data": "tensorflow", "DataLoader": "torch"}


class Reports(keras.callbacks.Callback):
    """Tells the parent that training has begun."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def on_train_begin(self, logs: Any = None) -> None:
        os.write(self._pipe, b"begun")


def train(kind: str, folder: Path, out: Path, pipe: int) -> None:
    """One attempt, in a fork."""
    random.seed(1)
    np.random.seed(1)
    for name, seed in (("tensorflow", "random.set_seed"), ("torch", "manual_seed")):
        if name in sys.modules and keras.backend.backend() == name:
            owner: Any = sys.modules[name]
            for part in seed.split("."):
                owner = getattr(owner, part)
            owner(1)
    separable = kind == "micro-batches"
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu"),
            *([] if separable else [keras.layers.Dropout(0.3), keras.layers.BatchNormalization()]),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    callbacks = [
        Reports(pipe),
        keras.callbacks.ReduceLROnPlateau(patience=1, monitor="loss"),
        keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True),
    ]
    history = memfit.fit(
        model,
        **KINDS[kind](),
        epochs=EPOCHS,
        verbose=0,
        callbacks=callbacks,
        validation_data=(ROWS[:32], TARGETS[:32]),
        snapshots=None if folder.name == "none" else keeping_of.Keeping(folder, share=1.0, least_seconds=0.0),
    )
    slots = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.optimizer.variables]
    np.savez(out, *model.get_weights(), *slots)
    out.with_suffix(".json").write_text(json.dumps({"epoch": history.epoch, **history.history}))


def attempt(kind: str, folder: Path, out: Path, delay: float | None, *, aimed: bool = False) -> tuple[bool, float]:
    """Trains in a fork, killed ``delay`` seconds after training has begun (before, where negative).

    Where it is ``aimed``, the kill waits for the next snapshot that is being written.

    Returns:
        Whether it was killed, and the seconds that it trained.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            train(kind, folder, out, writing)
            code = 0
        except Exception as error:  # noqa: BLE001 - a fork must not return into the parent's code
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(code)
    os.close(writing)
    if delay is not None and delay < 0:
        time.sleep(-delay)
    else:
        select.select([reading], [], [], 120)
    begun = time.monotonic()
    if delay is not None:
        time.sleep(max(0.0, delay))
        if aimed:
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline and not any(folder.glob("*.partial")):
                pass
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"an attempt at {kind} failed with {code}")
    return code != 0, time.monotonic() - begun


def difference(expected: Path, found: Path) -> tuple[float, float]:
    """The largest differences in weights and optimizer state, and in the history; infinite where the shapes differ."""
    one, other = (
        json.loads(expected.with_suffix(".json").read_text()),
        json.loads(found.with_suffix(".json").read_text()),
    )
    logs = float("inf")
    if {name: len(values) for name, values in one.items()} == {name: len(values) for name, values in other.items()}:
        logs = max(abs(a - b) for name, values in one.items() for a, b in zip(values, other[name], strict=True))
    with np.load(expected) as a, np.load(found) as b:
        return max(float(np.abs(a[name] - b[name]).max()) for name in a.files), logs


def measured(kind: str, kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """The row of one kind of data."""
    plain, snapshots = folder / "plain.npz", folder / "snapshots"
    attempt(kind, folder / "none", plain, None)
    _, usual = attempt(kind, snapshots, folder / "kept.npz", None)
    weights, logs = difference(plain, folder / "kept.npz")
    done, inside, runs = 0, 0, 0
    while done < kills:
        finished = False
        while not finished:
            delay = -rng.uniform(0, 1.0) if rng.random() < 0.1 else rng.uniform(0, 0.6 * usual)
            out = folder / "killed.npz"
            aimed = delay > 0 and rng.random() < 0.25
            killed, _ = attempt(kind, snapshots, out, delay if done < kills else None, aimed=aimed)
            finished = not killed
            done += killed
            inside += killed and any(snapshots.glob("*.partial"))
        runs += 1
        found = difference(plain, folder / "killed.npz")
        weights, logs = max(weights, found[0]), max(logs, found[1])
    return {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "kind": kind,
        "kills": done,
        "inside_a_snapshot": int(inside),
        "runs": runs,
        "weights_difference": weights,
        "logs_difference": logs,
        "agrees": max(weights, logs) <= TOLERANCE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="of all kinds together (default: %(default)s)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="(default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    fitting.fit  # noqa: B018 - imported before the first fork
    warnings.filterwarnings("ignore", category=UserWarning, module="keras")
    backend = keras.backend.backend()
    kinds = options.kind or [kind for kind in KINDS if ONLY.get(kind, backend) == backend]
    rng, rows = random.Random(options.seed), []
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix="memfit-kills-"))
        try:
            rows.append(measured(kind, -(-options.kills // len(kinds)), rng, folder))
        finally:
            shutil.rmtree(folder)
        print(json.dumps(rows[-1]), flush=True)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sys.exit(0 if all(row["agrees"] for row in rows) else 1)


if __name__ == "__main__":
    main()
