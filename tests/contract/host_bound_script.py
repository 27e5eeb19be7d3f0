"""A step that takes more than was predicted, where there is less than it takes: it fails for real, below what the kernel
allows, and goes through in smaller parts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

import memfit
from memfit import budgeting
from memfit.backends.on_torch import analysis
from memfit.budgeting import host
from memfit.budgeting.ceiling import Ceiling
from memfit.units import MIB

BATCH = 512
ROOM = 150 * MIB


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(32, activation="tanh") for _ in range(8)]
    model = keras.Sequential(
        [keras.Input((128, 8)), *body, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def main() -> None:
    """Trains plainly, then with memfit, and compares."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2 * BATCH, 128, 8)).astype("float32"), np.ones((2 * BATCH, 1), "float32")
    arguments = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    plain, ours = small_model(), small_model()
    plain.fit(x, y, **arguments)
    whole = analysis.step_bytes

    def too_little(*asked: Any) -> Any:
        return dataclasses.replace(whole(*asked), bytes=MIB, margin=MIB, spare=0)

    analysis.step_bytes = too_little
    host.host_ceiling = lambda **_: Ceiling(budgeting.reading().host_bytes + ROOM, "for this test")
    report = memfit.fit(ours, x, y, **arguments).memfit
    for event in report.events:
        print(event.kind, event.message)
    for a, b in zip(plain.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    print("same weights")


if __name__ == "__main__":
    main()
