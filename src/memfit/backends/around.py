"""A function around the step of a model, as Keras' own loop calls it: what the three frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memfit.backends import keras_seam

Run = Callable[[Any], Any]
"""The step itself on one batch: gives its logs ("train", "test") or its outputs ("predict")."""

Wrapper = Callable[[Run, Any], Any]
"""Called with the step and a batch in the step's place; what it returns goes to Keras' loop."""


class Around:
    """Stands in for ``train_function``, ``test_function`` or ``predict_function`` of a model.

    A framework's own class says in ``__call__`` how Keras' loop calls it and how it hands a batch on.

    Args:
        model: A Keras model.
        kind: "train", "test" or "predict".
        wrapper: What is called in the step's place.

    Attributes:
        inner: Keras' function, or the one that ``attach`` has put on the model.
    """

    def __init__(self, model: Any, kind: str, wrapper: Wrapper) -> None:
        self._model = model
        self._kind = kind
        self._wrapper = wrapper
        self._name = f"{kind}_function"
        self.inner: Any = None
        self._put_on()

    def exchange(self, change: Callable[[], None]) -> None:
        """Calls a function that may put another step on the model, between two runs of it as well as inside a wrapper."""
        self.take_off()
        try:
            change()
        finally:
            self._put_on()

    def take_off(self) -> None:
        """Leaves the model with the function that was there."""
        keras_seam.set_attribute(self._model, self._name, self.inner)

    def rescue(self) -> None:
        """After a run that failed: gives the model its variables back where the loop had taken them."""

    def _put_on(self) -> None:
        getattr(self._model, f"make_{self._name}")()
        self.inner = getattr(self._model, self._name)
        keras_seam.set_attribute(self._model, self._name, self)

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError
