"""Sequences of growing length under a resource limit that the longest does not fit: PyTorch's allocator fails for real."""

from __future__ import annotations

import resource
from typing import Any

import keras
import numpy as np

import memfit
from memfit.budgeting import host

ROOM = 80 * 2**20
LENGTHS = (200, 200, 6000, 200, 6000)
BATCH = 32


class Lengths(keras.utils.PyDataset):
    """Batches of one length each."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        return rng.normal(size=(BATCH, LENGTHS[index], 8)).astype("float32"), np.ones((BATCH, 1), "float32")


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    x = keras.Input((None, 8))
    y = keras.layers.Dense(48, activation="tanh")(x)
    y = keras.layers.Dense(48, activation="tanh")(y)
    model = keras.Model(x, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(y)))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def main() -> None:
    """Trains plainly, then within the limit, and compares."""
    plain, ours = small_model(), small_model()
    arguments = {"epochs": 2, "shuffle": False, "verbose": 0}
    plain.fit(Lengths(), **arguments)
    # Planned for the short batches that come first, before the limit: the long ones are the surprise.
    plan = memfit.plan(ours, Lengths(), **arguments)
    used = host._kilobyte_lines(host.Path("/proc/self/status"))["VmData"]
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, resource.RLIM_INFINITY))
    report = memfit.fit(ours, Lengths(), **arguments, plan=plan).memfit
    for event in report.events:
        print(event.kind, event.message)
    for a, b in zip(plain.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    print("same weights")


if __name__ == "__main__":
    main()
