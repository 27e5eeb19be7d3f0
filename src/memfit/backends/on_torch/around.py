"""PyTorch: a function around the step."""

from __future__ import annotations

from typing import Any

from memfit.backends import keras_optimizer, keras_seam
from memfit.backends.around import Around


class TorchAround(Around):
    """Keras' loop calls the step on a list of one batch."""

    tells_writes = True

    def __call__(self, data: Any) -> Any:
        # Keras lets go of the gradients of the step before only after the forward pass.
        if self._kind == "train" and keras_optimizer.is_updating_in_groups(self._model.optimizer):
            self._forget()
        return self._wrapper(lambda batch: self.inner([batch]), data[0])

    def _marks(self, variables: list[Any]) -> Any:
        """Each tensor, and PyTorch's count of the writes to it."""
        tensors = [variable.value for variable in variables]
        return [(id(tensor), tensor._version) for tensor in tensors]

    def _forget(self) -> None:
        """The gradients that there were already: Keras' step begins with none. One of the user's own may add them up."""
        if not keras_seam.overrides(self._model, "train_step"):
            self._model.zero_grad()
