"""What twelve new models, each trained once, leave behind: plain ``model.fit`` beside ``memfit.fit``, a fresh process each.

    python benchmarks/fit_loop.py --backend torch

``held_mib`` is the anonymous memory of the process after each fit. Rows go to ``benchmarks/results/fit-loop-BACKEND.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

_TIMES = 12


def looped(way: str) -> list[int]:
    """MiB held after each fit, in this process."""
    import keras
    import numpy as np

    import memfit
    from memfit.budgeting import reading

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 256)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")
    held = []
    for _ in range(_TIMES):
        layers = [keras.layers.Dense(6000, activation="relu"), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((256,)), *layers])
        model.compile("adam", "mse")
        fit = model.fit if way == "plain" else lambda *args, model=model, **given: memfit.fit(model, *args, **given)
        fit(x, y, batch_size=32, shuffle=False, verbose=0)
        held.append(reading().host_bytes >> 20)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", choices=("plain", "memfit"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(looped(given.child)))
        return
    environment = {**os.environ, "KERAS_BACKEND": given.backend}
    rows = []
    for way in ("plain", "memfit"):
        command = [sys.executable, str(Path(__file__).resolve()), "--child", way]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        held = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append({"backend": given.backend, "way": way, "held_mib": held})
        print(rows[-1], flush=True)
    (given.out / f"fit-loop-{given.backend}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
