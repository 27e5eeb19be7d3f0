"""The child of a trial: ``python -m memfit.probing.trial_child FOLDER``. Reads the job there, writes ``result.json``."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

_STEPS = 2
"""The second step holds gradients and optimizer slots together."""


def main(folder: Path) -> None:
    """Trains two steps on zeros and writes what they took."""
    import keras
    import numpy as np

    from memfit import backends, budgeting
    from memfit.backends import keras_saving, keras_seam
    from memfit.executing.attached import attached
    from memfit.guarding.watch import Watcher
    from memfit.levers.pulled import pulled

    # Both files were written by the parent into a private folder, for this process alone.
    classes: dict[str, Any] = pickle.loads((folder / "classes.pickle").read_bytes())
    job: dict[str, Any] = pickle.loads((folder / "job.pickle").read_bytes())
    with keras_saving.no_imports():
        model = keras.saving.load_model(folder / "model.keras", custom_objects=classes, safe_mode=False)
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
    (folder / "result.json").write_text(json.dumps({"base": base, "peak": watcher.peak.host_bytes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
