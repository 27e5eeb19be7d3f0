"""PyTorch: a function around the step."""

from __future__ import annotations

from typing import Any

from memfit.backends.around import Around


class TorchAround(Around):
    """Keras' loop calls the step on a list of one batch."""

    def __call__(self, data: Any) -> Any:
        return self._wrapper(lambda batch: self.inner([batch]), data[0])
