"""8-bit optimizer state beside Adam's: the loss after training, bytes a parameter, the time and memory of a step.

    python benchmarks/optimizer_state.py --backend torch [--models cnn lstm transformer] [--seeds 0 1 2]
    python benchmarks/optimizer_state.py --backend torch --wide

Training: each model is trained three times a seed, with ``keras.optimizers.Adam``, so once more, and with that same Adam under
the lever, on the same data in the same order from the same weights. Labels are noisy, so that the loss ends well above zero.
Losses are those of the last epoch's training and of held-out samples; ``..._apart`` is how far the lever's is from Adam's,
relative. The target is 0.01. ``adam_again_..._apart`` is the same of Adam itself from weights that are a millionth larger: what
rounding alone moves. ``step_time_ratio`` is of the fastest epochs of Adam and the lever.

``--wide``: layers of 4 and of 17 million weights and a batch of 8, the worst case: hardly anything but the update. ``seconds``
is the fastest step, ``step_mib`` what steps took on top of weights and state, as ``prediction.py`` measures it.
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

TIME_LIMIT = 1500
_NUDGE = 1e-6
WAYS = ("adam", "adam_again", "adam8bit")
HELD_OUT = 1024
LOSSES = ("training_loss", "held_out_loss")


def cnn() -> tuple[Any, Any, Any]:
    """The demo's deeper network on small images: a pattern for each class in noise; three labels in ten are drawn."""
    import numpy as np
    from keras import Input, Sequential, layers

    rng = np.random.default_rng(1)
    y = rng.integers(0, 10, 4096 + HELD_OUT).astype("int32")
    patterns = rng.normal(size=(10, 4, 4, 3)).astype("float32").repeat(4, 1).repeat(4, 2)
    x = (patterns[y] + 3 * rng.normal(size=(len(y), 16, 16, 3))).astype("float32")
    y = np.where(rng.random(len(y)) < 0.3, rng.integers(0, 10, len(y)), y).astype("int32")
    blocks = [
        layer
        for filters in (32, 32, 64, 64)
        for layer in (layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D(padding="same"))
    ]
    return Sequential([Input((16, 16, 3)), *blocks, layers.Flatten(), layers.Dense(10)]), x, y


def lstm() -> tuple[Any, Any, Any]:
    """Sequences of 24 words; each of eight classes uses some words a little more often."""
    import numpy as np
    from keras import Input, Sequential, layers

    rng = np.random.default_rng(2)
    y = rng.integers(0, 8, 4096 + HELD_OUT).astype("int32")
    often = np.exp(0.45 * rng.normal(size=(8, 200)))
    words = np.cumsum(often / often.sum(1, keepdims=True), 1)
    x = np.minimum((rng.random((len(y), 24, 1)) > words[y][:, None, :]).sum(-1), 199).astype("int32")
    return Sequential([Input((24,), dtype="int32"), layers.Embedding(200, 64), layers.LSTM(64), layers.Dense(8)]), x, y


def transformer() -> tuple[Any, Any, Any]:
    """The next of 64 words, drawn by the two before it."""
    import keras
    import numpy as np
    from keras import Input, Model, layers

    rng = np.random.default_rng(3)
    first, second = (1.5 * rng.normal(size=(64, 64)) for _ in range(2))
    words = rng.integers(0, 64, (1024 + HELD_OUT, 26))
    for i in range(2, 26):
        chosen = first[words[:, i - 1]] + second[words[:, i - 2]] + rng.gumbel(size=(len(words), 64))
        words[:, i] = chosen.argmax(1)
    inputs = Input((25,), dtype="int32")
    positions = keras.ops.cumsum(keras.ops.ones_like(inputs), axis=1) - 1
    x = layers.Embedding(64, 64)(inputs) + layers.Embedding(25, 64)(positions)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(y, y, use_causal_mask=True)
        x = x + layers.Dense(64)(layers.Dense(256, activation="gelu")(layers.LayerNormalization()(x)))
    model = Model(inputs, layers.Dense(64)(layers.LayerNormalization()(x)))
    return model, words[:, :25].astype("int32"), words[:, 1:].astype("int32")


MODELS: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], int]] = {
    "cnn": (cnn, 2),
    "lstm": (lstm, 8),
    "transformer": (transformer, 10),
}
"""Each model and its data, and the epochs it trains."""


def trained(name: str, way: str, seed: int) -> dict[str, Any]:
    """One training, in this process."""
    import keras
    import numpy as np

    build, epochs = MODELS[name]
    keras.utils.set_random_seed(seed)
    model, x, y = build()
    model.compile(
        keras.optimizers.Adam(1e-3 if name == "cnn" else 2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    if way == "adam_again":
        for weight in model.trainable_variables:
            weight.assign(weight * (1 + _NUDGE))
    model.optimizer.build(model.trainable_variables)
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    with _lever(model, way):
        history = model.fit(x[HELD_OUT:], y[HELD_OUT:], batch_size=64, epochs=epochs, verbose=0, callbacks=[clock])
        state = _state_bytes(model.optimizer)
    loss = model.evaluate(x[:HELD_OUT], y[:HELD_OUT], batch_size=256, verbose=0)
    steps = -(-(len(x) - HELD_OUT) // 64)
    fastest = min(b - a for a, b in itertools.pairwise(ends)) / steps
    large = [v for v in model.trainable_variables if np.prod(v.shape) >= 4096]
    return {
        "training_loss": history.history["loss"][-1],
        "held_out_loss": loss,
        "seconds": fastest,
        "state": state,
        "count": model.count_params(),
        "large": len(large),
    }


def _lever(model: Any, way: str) -> Any:
    from memfit import backends
    from memfit.levers import optimizer_state

    if way != "adam8bit":
        return contextlib.nullcontext()
    return optimizer_state.attached(model, optimizer_state.SETTING, backends.current(), trains=True)


def _state_bytes(optimizer: Any) -> int:
    from memfit.profiling import layers

    return layers.variable_bytes(optimizer.variables)


def compared(name: str, seed: int) -> dict[str, Any]:
    """One row: a model and a seed."""
    import keras

    found = {way: trained(name, way, seed) for way in WAYS}
    adam, again, lever = (found[way] for way in WAYS)
    return {
        "backend": keras.backend.backend(),
        "model": name,
        "seed": seed,
        **{f"adam_{kind}": round(adam[kind], 5) for kind in LOSSES},
        **{f"adam8bit_{kind}": round(lever[kind], 5) for kind in LOSSES},
        **{f"{kind}_apart": round(lever[kind] / adam[kind] - 1, 5) for kind in LOSSES},
        **{f"adam_again_{kind}_apart": round(again[kind] / adam[kind] - 1, 5) for kind in LOSSES},
        "weights": adam["count"],
        "large_tensors": adam["large"],
        "adam_bytes_a_parameter": round(adam["state"] / adam["count"], 3),
        "adam8bit_bytes_a_parameter": round(lever["state"] / adam["count"], 3),
        "step_time_ratio": round(lever["seconds"] / adam["seconds"], 3),
    }


def wide(size: int, way: str) -> dict[str, Any]:
    """The time and memory of a step that is hardly more than the update of one layer's ``size`` squared weights."""
    import keras
    import numpy as np
    from prediction import base_bytes, host_peak

    from memfit import backends

    model = keras.Sequential([keras.Input((size,)), keras.layers.Dense(size)])
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    x = np.ones((8 * 12, size), "float32")
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: times.append(time.perf_counter()))
    with _lever(model, way):
        base = base_bytes(model, backends.current())
        with host_peak() as highest:
            model.fit(x, x, batch_size=8, verbose=0, callbacks=[clock])
        state = _state_bytes(model.optimizer)
    return {
        "backend": keras.backend.backend(),
        "model": "wide",
        "way": way,
        "weights": model.count_params(),
        "bytes_a_parameter": round(state / model.count_params(), 3),
        "seconds": round(min(b - a for a, b in itertools.pairwise(times)), 4),
        "weights_mib": round(model.count_params() * 4 / 2**20),
        "step_mib": (highest[0] - base) // 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "WHICH"))
    given = parser.parse_args()
    if given.child:
        what, which = given.child
        print(json.dumps(compared(what, int(which)) if what in MODELS else wide(int(what), which)))
        return
    environment = {**os.environ, "KERAS_BACKEND": given.backend}
    sizes = (2048, 4096)
    rows = (
        itertools.product(map(str, sizes), ("adam", "adam8bit"))
        if given.wide
        else itertools.product(given.models, given.seeds)
    )
    for what, which in rows:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", what, str(which)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
        if done.returncode == 0:
            put(json.loads(done.stdout.strip().splitlines()[-1]), given.out / f"optimizer-state-{given.backend}.jsonl")
        else:
            print(done.stderr[-1500:], flush=True)


def put(row: dict[str, Any], path: Path) -> None:
    """Prints a row and keeps it in the place of the one before of the same question."""
    print(json.dumps(row), flush=True)
    keys = ("model", "seed", "way", "weights")
    before = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [one for one in before if any(one.get(key) != row.get(key) for key in keys)]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*rows, row]))


if __name__ == "__main__":
    main()
