"""PyTorch: a function around the step."""

from __future__ import annotations

from typing import Any

from memfit.backends.around import Around


class TorchAround(Around):
    """Keras' loop calls the step on a list of one batch."""

    tells_writes = True

    def __call__(self, data: Any) -> Any:
        return self._wrapper(lambda batch: self.inner([batch]), data[0])

    def _marks(self, variables: list[Any]) -> Any:
        """Each tensor, and PyTorch's count of the writes to it."""
        tensors = [variable.value for variable in variables]
        return [(id(tensor), tensor._version) for tensor in tensors]
