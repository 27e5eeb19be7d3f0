"""A user's script of two calls of ``fit`` that knows nothing of memfit: ``python supervised_script.py OUT.npz [WAY]``.

WAY "kills": the process kills itself in each of the two calls, once; "grows": it takes memory until the kernel kills it;
"waits": it says when it trains, and takes its time.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

OUT, WAY = Path(sys.argv[1]), (sys.argv[2] if len(sys.argv) > 2 else "")
X = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
Y = X[:, :1] ** 2
HELD: list[Any] = []


class Disturbs(keras.callbacks.Callback):
    """Kills this process at some batches, each once for all processes of the script."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        steps = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        flag = OUT.with_suffix(f".{self.model.name}")
        if WAY == "kills" and steps == 7 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if WAY == "grows" and steps == 7 and not flag.exists():
            flag.touch()
            HELD.append(np.ones(4 * 2**30, "uint8"))
        if WAY == "waits":
            if steps == 3:
                print("training", flush=True)
            time.sleep(0.2)


def model(name: str) -> Any:
    glorot = keras.initializers.GlorotUniform
    layers = [keras.layers.Dense(units, kernel_initializer=glorot(units)) for units in (4, 1)]
    built = keras.Sequential([keras.Input((4,)), *layers], name=name)
    built.compile("adam", "mse")
    return built


def main() -> None:
    random.seed(0)
    np.random.seed(0)
    if keras.backend.backend() != "jax":
        framework: Any = sys.modules[keras.backend.backend()]
        (framework.manual_seed if keras.backend.backend() == "torch" else framework.random.set_seed)(0)
    found: list[Any] = []
    for name in ("first", "second"):
        trained = model(name)
        history = trained.fit(X, Y, batch_size=12, epochs=3, verbose=0, callbacks=[Disturbs()])
        found += [*trained.get_weights(), np.array(history.history["loss"]), np.random.rand()]
    np.savez(OUT, *found)
    print("done", flush=True)
    sys.exit(0 if WAY == "waits" else 3)


if __name__ == "__main__":
    main()
