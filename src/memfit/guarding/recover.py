"""Rollback of a first step that ran out of device memory, so that a smaller plan can take it again.

On an accelerator the first real step is the trial of the plan: a failure there is an exception and the process stays
usable, while a child could not see the memory that this process has reserved. On a CPU nothing is kept: there the kernel
kills, or the allocator is not to be trusted afterwards.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


class Checkpoint:
    """A model's variables on the host, until the first step has gone through."""

    def __init__(self, model: Any) -> None:
        self._variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        self._values = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in self._variables]

    def restore(self) -> None:
        """Puts the values back."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)


class FirstStep(keras.callbacks.Callback):
    """Holds the checkpoint until a first step has gone through, and lets it go then."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint: Checkpoint | None = checkpoint

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.checkpoint is None:
            return
        # The logs are read so that a failure of an asynchronous step shows here, not later.
        for value in keras.tree.flatten(logs or {}):
            float(np.asarray(keras.ops.convert_to_numpy(value)).sum())
        self.checkpoint = None
