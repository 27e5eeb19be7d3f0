"""What rematerialization saves and costs: predicted and measured bytes and seconds of a step, one fresh child process a row.

    python benchmarks/remat.py --backend torch [--models cnn ...] [--levels plain 0.5 smallest] [--micro] [--jit]

A level is the arrangement: ``plain``; a number, the share of the plain activations that ``levers.remat.choose`` may keep;
``smallest``, the last of ``levers.remat.ladder``. ``measured`` is the highest anonymous resident bytes of four steps less those
before (``prediction.py`` says how), ``seconds`` the fastest step of the last three. Compare ratios within a machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_STEPS = 4
LEVELS = ("plain", "0.5", "smallest")
TIME_LIMIT = 300


def cnn() -> tuple[Any, Any, int]:
    from keras import Input, Sequential, layers

    convolutions = [layers.Conv2D(32, 3, padding="same", activation="relu") for _ in range(12)]
    model = Sequential([Input((64, 64, 3)), *convolutions, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    return model, (64, 64, 3), 64


def residual() -> tuple[Any, Any, int]:
    from keras import Input, Model, layers

    inputs = Input((64, 64, 3))
    x = layers.Conv2D(32, 3, padding="same")(inputs)
    for _ in range(5):
        y = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.Conv2D(32, 3, padding="same", use_bias=False)(y)
        x = layers.Activation("relu")(layers.Add()([layers.BatchNormalization()(y), x]))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return Model(inputs, outputs), (64, 64, 3), 48


def mlp() -> tuple[Any, Any, int]:
    from keras import Input, Sequential, layers

    hidden = [layers.Dense(512, activation="gelu") for _ in range(16)]
    return Sequential([Input((512,)), *hidden, layers.Dense(10)]), (512,), 8192


def transformer() -> tuple[Any, Any, int]:
    from keras import Input, Model, layers

    inputs = Input((128, 64))
    x = layers.Dense(128)(inputs)
    for _ in range(6):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.Dropout(0.1)(layers.MultiHeadAttention(4, 32, dropout=0.1)(y, y))])
        y = layers.Dense(512, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dropout(0.1)(layers.Dense(128)(y))])
    outputs = layers.Dense(10)(layers.GlobalAveragePooling1D()(x))
    return Model(inputs, outputs), (128, 64), 64


MODELS: dict[str, Callable[[], tuple[Any, Any, int]]] = {
    "cnn": cnn,
    "residual": residual,
    "mlp": mlp,
    "transformer": transformer,
}


def measure(name: str, level: str, micro: bool, jit: bool) -> dict[str, Any]:
    """One row, in this process."""
    import keras
    import numpy as np
    from prediction import base_bytes, host_peak, trimming

    from memfit import backends
    from memfit.backends import keras_seam
    from memfit.executing import attached
    from memfit.levers import remat
    from memfit.records import Split, TensorSpec

    backend = backends.current()
    model, shape, batch_size = MODELS[name]()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit or "auto")
    spec = (TensorSpec((batch_size, *shape), "float32"), TensorSpec((batch_size,), "int32"), None)
    keras_seam.symbolic_build(model, spec)
    chain = remat.chain(model, spec)
    chosen = None
    if level == "smallest":
        chosen = remat.ladder(chain)[-1]
    elif level != "plain":
        chosen = remat.choose(chain, int(float(level) * chain.plain_bytes))
        if chosen is None:
            return {"model": name, "level": level, "skipped": "the chain cannot be made as small"}
    split = Split(batch_size // 4) if micro else None
    scope = contextlib.nullcontext() if chosen is None else remat.attached(model, chosen, backend)
    rng = np.random.default_rng(0)
    x, y = rng.random((NUM_STEPS * batch_size, *shape), "float32"), rng.integers(0, 10, NUM_STEPS * batch_size)
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: times.append(time.perf_counter()))
    with scope:
        estimate = backend.step_bytes(model, spec, split)
        base = base_bytes(model, backend)
        with attached.attached(model, split, backend, analysed=True), host_peak() as highest:
            model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[clock, *trimming(backend)])
    mib = 2**20
    return {
        "backend": backend.name,
        "model": name,
        "level": level,
        "micro": micro,
        "jit": jit,
        "segments": 0 if chosen is None else len(chosen.segments),
        "chain_mib": (chain.plain_bytes if chosen is None else remat.peak_bytes(chain, chosen)) // mib,
        "again": 0.0 if chosen is None else round(remat.recomputation(chain, chosen) / chain.cost, 2),
        "predicted_mib": None if estimate is None else estimate.bytes // mib,
        "upper_mib": None if estimate is None else estimate.upper // mib,
        "measured_mib": (highest[0] - base) // mib,
        "seconds": round(min(b - a for a, b in itertools.pairwise(times)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--levels", nargs="*", default=LEVELS)
    parser.add_argument("--micro", action="store_true")
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "LEVEL"))
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*given.child, given.micro, given.jit)))
        return
    environment = {**os.environ, "KERAS_BACKEND": given.backend, "MEMFIT_CACHE_DIR": ""}
    flags = [flag for flag, there in (("--micro", given.micro), ("--jit", given.jit)) if there]
    for name in given.models:
        for level in given.levels:
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, level, *flags]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
            print(done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-1500:], flush=True)


if __name__ == "__main__":
    main()
