"""What ``memfit.MemoryMonitor`` costs: plain ``model.fit`` with and without it, in one run, interleaved.

Target: 0.5 % of the time. Two figures: the processor time of its sampling thread as a share of wall time, which no neighbour on
the machine disturbs; and the ratio of wall times, which is noisy on a busy one.

    KERAS_BACKEND=torch python benchmarks/monitor.py [--repeats 7] [--out DIR]

Appends one JSON row to ``benchmarks/results/monitor-BACKEND.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import keras
import watcher

import memfit


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model, x, y = watcher.cnn()

    def seconds(*callbacks: Any) -> float:
        start = time.perf_counter()
        model.fit(x, y, batch_size=64, epochs=3, verbose=0, callbacks=list(callbacks))
        return time.perf_counter() - start

    seconds()
    ratios, costs = [], []
    for _ in range(options.repeats):
        monitor = memfit.MemoryMonitor()
        with_it = seconds(monitor)
        ratios.append(with_it / seconds())
        costs.append(monitor.timeline.cost)
    row = {
        "backend": keras.backend.backend(),
        "cost": statistics.median(costs),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "repeats": options.repeats,
    }
    with (options.out / f"monitor-{row['backend']}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{row['backend']:>10}: {row['cost']:.2%} of the time in the sampling thread; time ratio {row['ratio']:.3f} "
        f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
    )


if __name__ == "__main__":
    main()
