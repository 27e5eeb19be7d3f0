"""A function around the step of a model, as Keras' own loop calls it: what the three frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from memfit.backends import keras_seam

Run = Callable[[Any], Any]
"""The step itself on one batch: gives its logs ("train", "test") or its outputs ("predict")."""

Wrapper = Callable[[Run, Any], Any]
"""Called with the step and a batch in the step's place; what it returns goes to Keras' loop."""


class Kept(Protocol):
    """The state before a train step."""

    whole: bool
    """Whether it can be put back whatever the step did."""

    def restore(self) -> bool:
        """Puts the state back; False where weights may have been written and there is no copy of them."""


class KeptVariables:
    """The state as the model's variables hold it between steps.

    Args:
        small: Moving averages, seeds, metrics: always copied, where they are.
        large: Weights and optimizer state.
        whole: Whether the large ones are copied, to the host.
        marks: Gives what is the same as long as nothing writes to variables, or None.
        forget: Lets go of what a step leaves beside them.
    """

    def __init__(
        self,
        small: list[Any],
        large: list[Any],
        *,
        whole: bool,
        marks: Callable[[list[Any]], Any | None],
        forget: Callable[[], None],
    ) -> None:
        self.whole = whole
        self._small = [(variable, keras.ops.copy(variable.value)) for variable in small]
        self._large = large
        self._copies = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in large] if whole else None
        self._marks = marks
        self._forget = forget
        self._before = None if whole else marks(large)

    def restore(self) -> bool:
        self._forget()
        untouched = self._before is not None and self._marks(self._large) == self._before
        if self._copies is None and not untouched:
            return False
        for variable, value in zip(self._large, self._copies or (), strict=self._copies is not None):
            variable.assign(value)
        for variable, value in self._small:
            variable.assign(value)
        return True


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

    tells_writes = False
    """Whether it is known of a step that failed whether it wrote to a weight, so that no copy is needed to be certain."""

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

    def keep(self, *, whole: bool) -> Kept:
        """What a train step may change, as it is now, so that the step can be undone.

        Args:
            whole: Whether weights and optimizer state are copied to the host. Without, the step can be undone where it is
                certain that it failed before it wrote any of them.
        """
        model = self._model
        large = [*model.trainable_variables, *keras_seam.optimizer_variables(model)]
        small = [*model.non_trainable_variables, *model.metrics_variables]
        return KeptVariables(small, large, whole=whole, marks=self._marks, forget=self._forget)

    def signature(self, batch: Any) -> Any:
        """Shapes and dtypes of a batch: what a step takes is known once one with the same has gone through."""
        leaves = keras_seam.flatten(batch)
        return tuple((tuple(getattr(leaf, "shape", ())), str(getattr(leaf, "dtype", ""))) for leaf in leaves)

    def _marks(self, variables: list[Any]) -> Any | None:
        """Something that is the same as long as nothing writes to the variables; None where the framework has no such thing."""
        return None

    def _forget(self) -> None:
        """Lets go of what a step that is undone has left beside the variables."""

    def _put_on(self) -> None:
        getattr(self._model, f"make_{self._name}")()
        self.inner = getattr(self._model, self._name)
        keras_seam.set_attribute(self._model, self._name, self)

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError
