"""What snapshots cost: training that is kept, isolated or under ``memfit run``, with snapshots and without.

Target: 1 % of the time. Two figures: what the writing of snapshots took as a share of the run, each write timed by itself; and
the ratio of a batch's time with and without, in interleaved pairs in one process, as wall time and as processor time, which
a busy machine disturbs less. Writes wait for the disk: a share above the target with a fair ratio is a disk that others use.

    KERAS_BACKEND=torch python benchmarks/snapshots.py [--pairs 12] [--seconds 2.5] [--heavy-seconds 150] [--out DIR]

Two models: ``tiny`` has weights of kilobytes and steps of less than a millisecond, ``heavy`` 96 MiB of weights and Adam's
moments. A first snapshot is due after a hundred times what its bytes take at 100 MB/s, at least two seconds; the next after a
hundred times what the last ones took. Appends one JSON row a model and way to ``benchmarks/results/snapshots-BACKEND.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import memfit

TARGET = 0.01


class Measures(keras.callbacks.Callback):
    """Times each snapshot in the process that trains, and ends the run after some seconds. Lists come back from a worker."""

    async_safe = True  # as memfit's own are: what Keras does at the end of a batch is the same with and without

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.limit = seconds
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.taken: list[float] = []
        self.moments: list[float] = []
        self.intervals: list[float] = []
        self.batches = [0]
        self.left = 1

    def on_train_begin(self, logs: Any = None) -> None:
        from memfit.guarding import keeping

        original = getattr(keeping.Keeper._keep, "original", keeping.Keeper._keep)

        def timed(keeper: Any, *arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(keeper, *arguments)
            finally:
                self.taken.append(time.perf_counter() - start)
                self.moments.append(time.perf_counter() - self.begun[0])
                self.intervals.append(keeper._pace._interval)

        timed.original = original  # type: ignore[attr-defined]
        keeping.Keeper._keep = timed
        self.begun.append(time.perf_counter())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches[0] += 1
        self.left -= 1
        if self.left <= 0:
            self.left = 20
            if time.perf_counter() - self.begun[0] > self.limit:
                self._model.stop_training = True  # on JAX ``model`` brings the state into the variables

    def on_train_end(self, logs: Any = None) -> None:
        self.ended.append(time.perf_counter())

    def found(self) -> dict[str, Any]:
        """In seconds."""
        total = self.ended[0] - self.begun[0]
        return {
            "seconds": total,
            "snapshots": len(self.taken),
            "snapshot_seconds": statistics.median(self.taken) if self.taken else None,
            "snapshot_seconds_longest": max(self.taken, default=None),
            "at": [round(moment, 1) for moment in self.moments[:20]],
            "interval": self.intervals[-1] if self.intervals else None,
            "share_of_time": sum(self.taken) / total,
            "batches": self.batches[0],
        }


def tiny() -> tuple[Any, np.ndarray, np.ndarray]:
    """Steps of less than a millisecond."""
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model, np.ones((64_000, 32), "float32"), np.ones((64_000, 1), "float32")


def heavy() -> tuple[Any, np.ndarray, np.ndarray]:
    """32 MiB of weights, and twice that of moments."""
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((2048,)), dense(2048, activation="relu"), dense(2048), dense(1)])
    model.compile("adam", "mse")
    return model, np.ones((1_280, 2048), "float32"), np.ones((1_280, 1), "float32")


MODELS = {"tiny": tiny, "heavy": heavy}


def trained(made: tuple[Any, np.ndarray, np.ndarray], seconds: float, **options: Any) -> dict[str, Any]:
    """One run, as many epochs as go into the time."""
    model, x, y = made
    measures = Measures(seconds)
    cpu = time.process_time()
    memfit.fit(model, x, y, batch_size=64, epochs=100_000, verbose=0, callbacks=[measures], **options)
    return {**measures.found(), "cpu_seconds": time.process_time() - cpu}


def pairs(made: tuple[Any, np.ndarray, np.ndarray], count: int, seconds: float) -> dict[str, Any]:
    """Kept and not, one after the other; the order changes from pair to pair."""

    def kept() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return trained(made, seconds, snapshots=folder)

    kept(), trained(made, seconds)
    with_them, wall, cpu = [], [], []
    for number in range(count):
        found = {}
        for way in ("kept", "without")[:: 1 if number % 2 else -1]:
            found[way] = kept() if way == "kept" else trained(made, seconds)
        a_batch = {
            way: (one["seconds"] / one["batches"], one["cpu_seconds"] / one["batches"]) for way, one in found.items()
        }
        wall.append(a_batch["kept"][0] / a_batch["without"][0])
        cpu.append(a_batch["kept"][1] / a_batch["without"][1])
        with_them.append(found["kept"])
    taken = [one["snapshot_seconds"] for one in with_them if one["snapshots"]]
    return {
        "seconds": sum(one["seconds"] for one in with_them),
        "snapshots": sum(one["snapshots"] for one in with_them),
        "snapshot_seconds": statistics.median(taken) if taken else None,
        "interval": statistics.median(one["interval"] for one in with_them if one["snapshots"]) if taken else None,
        "share_of_time": sum(one["share_of_time"] * one["seconds"] for one in with_them)
        / sum(one["seconds"] for one in with_them),
        "ratio": statistics.median(wall),
        "ratio_low": min(wall),
        "ratio_high": max(wall),
        "cpu_ratio": statistics.median(cpu),
        "pairs": count,
    }


def under_run(name: str, seconds: float) -> dict[str, Any]:
    """This file as a script under ``memfit run``, which keeps every call of ``fit``."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "memfit", "run", __file__, "--model", name, "--result", str(result)]
        subprocess.run([*command, "--seconds", str(seconds)], check=True, env=dict(os.environ))
        return dict(json.loads(result.read_text()))


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--heavy-seconds", type=float, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result is not None:
        options.result.write_text(json.dumps(trained(MODELS[options.model](), options.seconds)))
        return
    rows = [
        ("tiny", "kept", lambda: pairs(tiny(), options.pairs, options.seconds)),
        ("tiny", "isolated", lambda: trained(tiny(), 4 * options.seconds, isolate=True)),
        ("tiny", "memfit run", lambda: under_run("tiny", 4 * options.seconds)),
        ("heavy", "kept", lambda: trained_kept(heavy(), options.heavy_seconds)),
    ]
    with (options.out / f"snapshots-{keras.backend.backend()}.jsonl").open("a") as file:
        for name, way, measure in rows:
            row = {"backend": keras.backend.backend(), "model": name, "way": way, **machine(), **measure()}
            file.write(json.dumps(row) + "\n")
            print(text(row), flush=True)


def trained_kept(made: tuple[Any, np.ndarray, np.ndarray], seconds: float) -> dict[str, Any]:
    """A run with snapshots that is too long for pairs."""
    with tempfile.TemporaryDirectory() as folder:
        return trained(made, seconds, snapshots=folder)


def machine() -> dict[str, Any]:
    """How busy it is, as other programs wait for the same cores and disk; and whether this one goes before them."""
    is_first = hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], "realtime": is_first}


def text(row: dict[str, Any]) -> str:
    """One line."""
    each = "none" if row["snapshot_seconds"] is None else f"{1000 * row['snapshot_seconds']:.1f} ms each"
    every = "" if row["interval"] is None else f", every {row['interval']:.1f} s"
    ratio = "" if "ratio" not in row else f"; time ratio {row['ratio']:.3f}, processor time {row['cpu_ratio']:.3f}"
    share = f"{100 * row['share_of_time']:.2f} % of {row['seconds']:.0f} s (target {100 * TARGET:.0f} %)"
    which = f"{row['backend']:>10} {row['model']:>5} {row['way']:>10}"
    return f"{which}: {row['snapshots']} snapshots, {each}{every}: {share}{ratio}"


if __name__ == "__main__":
    main()
