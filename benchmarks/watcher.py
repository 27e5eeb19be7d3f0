"""What watching costs: ``memfit.fit`` with and without its watcher and its looks between batches, in one run, interleaved.

Target: 0.5 % of the time. Two figures: the processor time of the watcher's own calls as a share of the run's processor time,
which no neighbour on the machine disturbs; and the ratio of wall times, which is noisy on a busy one.

    KERAS_BACKEND=torch python benchmarks/watcher.py [--repeats 7] [--out DIR]

Appends one JSON row a model to ``benchmarks/results/watcher-BACKEND.jsonl``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import memfit
from memfit import carrying_out, fitting
from memfit.guarding.attention import Attention
from memfit.guarding.watch import Watcher


class Spent:
    """Processor seconds of the calls that it is put around, in the thread that makes them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*arguments, **keywords)
            finally:
                self.seconds += time.thread_time() - start

        return timed


class NoWatcher(Watcher):
    """Takes the first and the last reading, and none between."""

    def __init__(self, backend: Any, *, notify: Any = None) -> None:
        super().__init__(backend, interval=3600.0, notify=notify)


class NoAttention(Attention):
    """Never looks."""

    def _look(self, now: float) -> None:
        self._next_look = float("inf")


def tiny() -> tuple[Any, np.ndarray, np.ndarray]:
    """Steps of well under a millisecond: the callback itself is what shows."""
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model, np.ones((64_000, 32), "float32"), np.ones((64_000, 1), "float32")


def cnn() -> tuple[Any, np.ndarray, np.ndarray]:
    """Steps of tens of milliseconds."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((48, 48, 3)), layers.Conv2D(24, 3, activation="relu"), layers.MaxPooling2D()])
    model.add(layers.Conv2D(32, 3, activation="relu"))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(1))
    model.compile("sgd", "mse")
    return model, np.ones((4_000, 48, 48, 3), "float32"), np.ones((4_000, 1), "float32")


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Inside, memfit.fit trains without."""
    kept = fitting.Watcher, carrying_out.Attention
    fitting.Watcher, carrying_out.Attention = NoWatcher, NoAttention
    try:
        yield
    finally:
        fitting.Watcher, carrying_out.Attention = kept


@contextlib.contextmanager
def measured(spent: Spent) -> Iterator[None]:
    """Inside, the calls of the watcher are timed."""
    places = [(Watcher, "_sample_host"), (Watcher, "_sample_device"), (Attention, "on_train_batch_begin")]
    kept = [getattr(owner, name) for owner, name in places]
    for (owner, name), method in zip(places, kept, strict=True):
        setattr(owner, name, spent.around(method))
    try:
        yield
    finally:
        for (owner, name), method in zip(places, kept, strict=True):
            setattr(owner, name, method)


def row(name: str, made: tuple[Any, np.ndarray, np.ndarray], repeats: int) -> dict[str, Any]:
    """One model."""
    model, x, y = made

    def seconds() -> float:
        start = time.perf_counter()
        memfit.fit(model, x, y, batch_size=64, verbose=0)
        return time.perf_counter() - start

    seconds()
    ratios, shares = [], []
    for _ in range(repeats):
        with_it = seconds()
        with unwatched():
            without = seconds()
        ratios.append(with_it / without)
        spent = Spent()
        with measured(spent):
            shares.append(spent_share(spent, seconds))
    return {
        "backend": keras.backend.backend(),
        "model": name,
        "share_of_time": statistics.median(shares),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "repeats": repeats,
    }


def spent_share(spent: Spent, seconds: Callable[[], float]) -> float:
    """Of a run's processor time, what the watcher's calls took."""
    start = time.process_time()
    seconds()
    return spent.seconds / (time.process_time() - start)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with (options.out / f"watcher-{keras.backend.backend()}.jsonl").open("a") as file:
        for name, make in (("tiny", tiny), ("cnn", cnn)):
            found = row(name, make(), options.repeats)
            file.write(json.dumps(found) + "\n")
            print(
                f"{found['backend']:>10} {name:>5}: {100 * found['share_of_time']:.2f} % of the time in its own calls; time "
                f"ratio {found['ratio']:.3f} ({found['ratio_low']:.3f} to {found['ratio_high']:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
