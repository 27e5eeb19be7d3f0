"""What a run is at one moment: read from model, optimizer, metrics, callbacks and data, and put back into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from memfit.errors import SnapshotError
from memfit.guarding import plain


def variables(model: Any) -> list[Any]:
    """Every variable that training changes, each once: weights, moving averages, seeds, optimizer slots, metrics."""
    found = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in found}.values())


def values(model: Any) -> list[np.ndarray]:
    """The values of ``variables`` on the host."""
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables(model)]


def specs(model: Any) -> list[Any]:
    """``[name, shape]`` of each of ``variables``, the end of its name alone: layers are numbered from model to model."""
    return [[variable.name.rsplit("_")[-1], [int(size) for size in variable.shape]] for variable in variables(model)]


def check_specs(model: Any, expected: list[Any]) -> None:
    """Raises SnapshotError where the model's variables are others than those of a snapshot."""
    own = specs(model)
    if own == expected:
        return
    different = next((pair for pair in zip(own, expected, strict=False) if pair[0] != pair[1]), None)
    where = f"{different[0]} here, {different[1]} there" if different else f"{len(own)} here, {len(expected)} there"
    raise SnapshotError(
        f"The snapshot is of another model or optimizer: its variables differ ({where}). Received: {model.name!r}. "
        "Build and compile the model as it was, delete the snapshots, or pass another folder as `snapshots`."
    )


def assign(model: Any, saved: Sequence[np.ndarray]) -> None:
    """Puts values of ``variables`` back."""
    for variable, value in zip(variables(model), saved, strict=True):
        variable.assign(value)


def constants(callbacks: Sequence[Any]) -> list[dict[str, int]]:
    """The large arrays of each callback before the run: data that it was given, not its state."""
    return [plain.large_arrays(callback) for callback in callbacks]


def of_callbacks(callbacks: Sequence[Any], constant: list[dict[str, int]]) -> list[Any]:
    """``(class name, attributes)`` of each callback."""
    return [
        (type(callback).__name__, plain.attributes(callback, known))
        for callback, known in zip(callbacks, constant, strict=True)
    ]


def restore_callbacks(callbacks: Sequence[Any], saved: Sequence[Any]) -> None:
    """Puts the plain attributes of callbacks back; a callback that stands elsewhere now keeps its own."""
    for callback, (name, attributes) in zip(callbacks, saved, strict=False):
        # What a progress bar counts belongs to the terminal that it writes to.
        if type(callback).__name__ == name and not isinstance(callback, keras.callbacks.ProgbarLogger):
            vars(callback).update(attributes)


class DataState:
    """What a data set has to remember between epochs.

    An object with ``state_dict`` and ``load_state_dict`` is asked; of any other its plain attributes count, such as the
    order that a ``PyDataset`` shuffles in ``on_epoch_end``; of a loader, its own random generator.

    Args:
        data: The ``x`` of ``fit``.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._asked = hasattr(data, "state_dict") and hasattr(data, "load_state_dict")
        self._by_attributes = isinstance(data, keras.utils.PyDataset)
        self._constant = plain.large_arrays(data) if self._by_attributes else {}
        self._generator: Any = getattr(data, "generator", None)

    def captured(self) -> dict[str, Any] | None:
        """The state now, in plain values.

        Raises:
            NotPlainError: Its own ``state_dict`` holds something else.
        """
        if self._asked:
            state = {"asked": self._data.state_dict()}
            plain.encoded(state, {})
            return state
        if self._by_attributes:
            return {"attributes": plain.attributes(self._data, self._constant)}
        if hasattr(self._generator, "get_state"):
            return {"generator": np.array(self._generator.get_state())}
        return None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Puts back what ``captured`` found."""
        if state is None:
            return
        if "asked" in state:
            self._data.load_state_dict(state["asked"])
        elif "attributes" in state:
            vars(self._data).update(state["attributes"])
        elif self._generator is not None:
            held = self._generator.get_state()
            held.numpy()[:] = state["generator"]
            self._generator.set_state(held)
