"""Trains on an array of so many MiB and prints the growth of anonymous memory beside what the array itself takes.

python streaming_script.py MIB array|memmap FILE
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import keras
import numpy as np

import memfit
from memfit import budgeting

FEATURES = 1024


def array(mib: int, kind: str, file: str) -> Any:
    shape = (mib * 2**20 // (4 * FEATURES), FEATURES)
    on_disk = kind == "memmap"
    x = np.lib.format.open_memmap(file, "w+", "float32", shape) if on_disk else np.empty(shape, "float32")
    for start in range(0, len(x), 4096):
        x[start : start + 4096] = start / len(x)
    return x


def main() -> None:
    mib, kind, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = array(mib, kind, file)
    y = np.zeros((len(x), 1), "float32")
    gc.collect()
    before = budgeting.reading().host_bytes
    history = memfit.fit(model, x, y, batch_size=256, epochs=1, shuffle=True, verbose=0)
    print(history.memfit.peak.host_bytes - before)


if __name__ == "__main__":
    main()
