"""What XLA's compiler takes on JAX while it compiles a plain training step, beside what is guessed of it; CPU.

    python benchmarks/compiling.py [--models unet ...]

One fresh child process a model, which traces and compiles the step once. Rows go to ``benchmarks/results/compiling-jax.jsonl``:
lines of StableHLO, the guess, the most that was held beyond what was held before, what is left of it, seconds. Target: the
guess between half and twice of what was measured, as one that is far too high refuses what could train. ``quick_seconds`` is
the same step compiled as plans are searched, without optimizing its code, and ``quick_bytes`` what it is predicted to take
less the prediction of before. Target: 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = (
    "mlp_small",
    "lstm",
    "transformer",
    "unet",
    "gpt",
    "vit",
    "cnn_3d",
    "resnet50",
    "small_cnn",
    "mobilenet_v3_small",
)


def measure(name: str) -> dict[str, Any]:
    """One row, in this process."""
    import prediction_models

    from memfit.backends import host_allocator, keras_seam
    from memfit.backends.on_jax import analysis
    from memfit.backends.on_jax.step import quick_options
    from memfit.budgeting import reading
    from memfit.guarding.watch import Watcher

    entry = prediction_models.MODELS[name]
    case = entry.build()
    case.model.compile("adam", case.loss)
    batch = case.batch(entry.batches[1])
    keras_seam.symbolic_build(case.model, batch)
    guessed = analysis.compiling_bytes(case.model, batch)
    host_allocator.trim()
    before, start = reading().host_bytes, time.perf_counter()
    with Watcher(interval=0.005) as watcher:
        step = analysis.step_bytes(case.model, batch, None)
    row = {"model": name, "batch_size": entry.batches[1], "guessed": guessed, "seconds": time.perf_counter() - start}
    measured, kept = watcher.peak.host_bytes - before, reading().host_bytes - before
    start = time.perf_counter()
    quick = analysis._step_bytes(case.model, batch, None, "train", quick_options())
    row |= {
        "quick_seconds": time.perf_counter() - start,
        "quick_bytes": quick.bytes - (0 if step is None else step.bytes),
    }
    lines = (guessed - analysis._COMPILING_FIXED) // analysis._COMPILING_LINE
    return row | {
        "lines": lines,
        "measured": measured,
        "kept": kept,
        "ratio": round(guessed / measured, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compiling-jax.jsonl")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print("ROW " + json.dumps(measure(given.child)))
        return
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "MEMFIT_CACHE_DIR": ""}
    rows = []
    for name in given.models:
        command = [sys.executable, __file__, "--child", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        rows.append(json.loads(next(line[4:] for line in done.stdout.splitlines() if line.startswith("ROW "))))
        print(
            {key: value >> 20 if key in ("guessed", "measured", "kept") else value for key, value in rows[-1].items()}
        )
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
