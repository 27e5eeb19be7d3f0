"""The child of a trial, ``python -m memfit.probing.trial_child``: reads the job from its input, prints what it took."""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

RESULT = "memfit-trial "
"""Begins the line with the result, a JSON object of ``base`` and ``peak`` in bytes."""

_STEPS = 2
"""The second step holds gradients and optimizer slots together."""


def main() -> None:
    """Trains two steps on zeros and prints what they took."""
    job: dict[str, Any] = pickle.load(sys.stdin.buffer)  # a pipe from the process that started this one
    import numpy as np

    from memfit import backends, budgeting
    from memfit.backends import keras_saving, keras_seam
    from memfit.executing.attached import attached
    from memfit.guarding.watch import Watcher
    from memfit.levers.pulled import pulled

    model = keras_saving.described_model(job["model"], job["classes"])
    batch = keras_seam.map_leaves(lambda leaf: np.zeros(leaf.shape, leaf.dtype), job["spec"])
    keras_seam.symbolic_build(model, batch)
    backend = backends.current()
    x, y, sample_weight = batch
    base = budgeting.reading().host_bytes
    with (
        Watcher() as watcher,
        pulled(model, job["levers"], backend, trains=True),
        attached(model, job["split"], backend),
    ):
        for _ in range(_STEPS):
            model.fit(x, y, sample_weight=sample_weight, batch_size=keras_seam.flatten(x)[0].shape[0], verbose=0)
    print(RESULT + json.dumps({"base": base, "peak": watcher.peak.host_bytes}), flush=True)


if __name__ == "__main__":
    main()
