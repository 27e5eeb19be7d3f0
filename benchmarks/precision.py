"""What mixed precision saves and costs: bytes and seconds of a step against float32's, one fresh child process a row.

    python benchmarks/precision.py --backend torch [--models mlp ...] [--settings mixed_bfloat16 ...] [--micro] [--smallest]

``analysed`` is the analysis' bytes, ``measured`` the highest anonymous resident bytes of four steps less those before
(``prediction.py`` says how), ``seconds`` the fastest step of the last three; the ratios are to the float32 row of the same
model in the same run. ``difference`` is how far the gradients of a tiny batch move. ``--smallest`` recomputes as much as
``remat`` can, in float32 too. ``hardware`` says whether the device computes that precision by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NUM_STEPS = 4
SETTINGS = ("mixed_bfloat16", "mixed_float16")
TIME_LIMIT = 200


def measure(name: str, setting: str, micro: bool, smallest: bool) -> dict[str, Any]:
    """One row, in this process."""
    import keras
    import numpy as np
    from prediction import base_bytes, host_peak
    from remat import MODELS

    from memfit import backends
    from memfit.backends import keras_seam
    from memfit.executing import attached
    from memfit.levers import precision, remat
    from memfit.levers.pulled import pulled
    from memfit.levers.verification import verified
    from memfit.records import Levers, Split, TensorSpec

    backend = backends.current()
    model, shape, batch_size = MODELS[name]()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    spec = (TensorSpec((batch_size, *shape), "float32"), TensorSpec((batch_size,), "int32"), None)
    keras_seam.symbolic_build(model, spec)
    chosen = None if setting == "float32" else setting
    recomputed = remat.ladder(remat.chain(model, spec))[-1] if smallest else None
    levers = Levers(remat=recomputed, precision=chosen)
    split = Split(batch_size // 4) if micro else None
    rng = np.random.default_rng(0)
    x, y = rng.random((NUM_STEPS * batch_size, *shape), "float32"), rng.integers(0, 10, NUM_STEPS * batch_size)
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: times.append(time.perf_counter()))
    with pulled(model, levers, backend):
        estimate = backend.step_bytes(model, spec, split)
        base = base_bytes(model, backend)
        with attached.attached(model, split, backend, analysed=True), host_peak() as highest:
            model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[clock])
    difference = None
    if chosen is not None:
        difference = verified(model, (x[:5], y[:5], None), Levers(precision=chosen), None, backend=backend)
    mib = 2**20
    return {
        "backend": backend.name,
        "model": name,
        "setting": setting,
        "micro": micro,
        "smallest": smallest,
        "hardware": precision.setting(backend) == setting,
        "analysed_mib": None if estimate is None else estimate.bytes // mib,
        "measured_mib": (highest[0] - base) // mib,
        "seconds": round(min(b - a for a, b in itertools.pairwise(times)), 3),
        "difference": difference and difference.precision_difference and round(difference.precision_difference, 4),
    }


def with_ratios(row: dict[str, Any], plain: dict[str, Any] | None) -> dict[str, Any]:
    """The row with its ratios to the float32 row."""
    if plain is None or plain is row:
        return row
    fields = ("analysed_mib", "measured_mib", "seconds")
    ratios = {f"{name}_ratio": round(row[name] / plain[name], 2) for name in fields if row[name] and plain[name]}
    return {**row, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    parser.add_argument("--models", nargs="*", default=["mlp", "cnn", "transformer"])
    parser.add_argument("--settings", nargs="*", default=SETTINGS)
    parser.add_argument("--micro", action="store_true")
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "SETTING"))
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*given.child, given.micro, given.smallest)))
        return
    environment = {**os.environ, "KERAS_BACKEND": given.backend, "MEMFIT_CACHE_DIR": ""}
    flags = [flag for flag, there in (("--micro", given.micro), ("--smallest", given.smallest)) if there]
    for name in given.models:
        plain = None
        for setting in ("float32", *given.settings):
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, setting, *flags]
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
            except subprocess.TimeoutExpired:
                row = {"backend": given.backend, "model": name, "setting": setting, "failed": f"over {TIME_LIMIT} s"}
                print(json.dumps(row), flush=True)
                continue
            if done.returncode != 0:
                print(done.stderr[-1500:], file=sys.stderr, flush=True)
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            plain = row if setting == "float32" else plain
            print(json.dumps(with_ratios(row, plain)), flush=True)


if __name__ == "__main__":
    main()
