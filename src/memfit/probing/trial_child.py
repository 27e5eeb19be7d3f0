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
    from memfit.backends import keras_seam
    from memfit.executing.attached import attached
    from memfit.guarding.watch import Watcher
    from memfit.records import Split

    # Both files were written by the parent into a private folder, for this process alone.
    classes: dict[str, Any] = pickle.loads((folder / "classes.pickle").read_bytes())
    job: dict[str, Any] = pickle.loads((folder / "job.pickle").read_bytes())
    model = keras.saving.load_model(folder / "model.keras", custom_objects=classes, safe_mode=False)
    batch = tuple(_zeros(part, np) for part in job["spec"])
    keras_seam.symbolic_build(model, batch)
    backend = backends.current()
    split = None if job["split"] is None else Split(**job["split"])
    x, y, sample_weight = batch
    base = budgeting.reading().host_bytes
    with Watcher() as watcher, attached(model, split, backend):
        for _ in range(_STEPS):
            model.fit(x, y, sample_weight=sample_weight, batch_size=keras_seam.flatten(x)[0].shape[0], verbose=0)
    (folder / "result.json").write_text(json.dumps({"base": base, "peak": watcher.peak.host_bytes}))


def _zeros(part: Any, np: Any) -> Any:
    """Arrays for a nested structure of ``(shape, dtype)`` pairs."""
    if part is None:
        return None
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], str):
        return np.zeros(part[0], part[1])
    if isinstance(part, dict):
        return {name: _zeros(value, np) for name, value in part.items()}
    return type(part)(_zeros(value, np) for value in part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
