"""One segment of a model as a pure function: what it reads goes in as arguments, what it changes comes out as results.

So the recomputation sees what the forward pass saw: a Dropout draws its mask from the same seed, BatchNormalization finds
the moving averages as they were. State is assigned once, outside, and a loss that a layer adds is added there, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from memfit.backends import keras_graph
from memfit.backends.protocol import Backend
from memfit.profiling import layers as layer_bytes
from memfit.units import KIB

_PINNED = 64 * KIB
"""Fixed state up to this size is copied: on PyTorch an assignment changes the very tensor that the recomputation reads."""


class UntrackedStateError(Exception):
    """The segment touched variables that it did not know of; nothing has happened but that they are known now."""


@dataclasses.dataclass(frozen=True)
class _Results:
    """How the flat results of a segment come apart.

    Attributes:
        structure: What the function returned, dense tensors replaced by None.
        places: Where in the flat structure the dense tensors stand.
        masked: Which of these carry a mask.
        owners: The layer of each added loss.
        changed: The variables that were assigned to.
    """

    structure: Any
    places: tuple[int, ...]
    masked: tuple[int, ...]
    owners: tuple[Any, ...]
    changed: tuple[Any, ...]


class RecomputedSegment:
    """Calls functions of tensors so that the backward pass computes their inside again.

    Args:
        layers: The layers and operations that the functions may call.
        backend: The current backend.
    """

    def __init__(self, layers: Sequence[Any], backend: Backend) -> None:
        self._layers = layers
        self._backend = backend
        self._others: list[Any] = []
        self._pinned: set[int] = set()

    def __call__(self, function: Callable[[list[Any]], Any], inputs: Sequence[Any], *, compiled: bool) -> Any:
        """The function's results; state and losses are where the plain call would have put them.

        Args:
            function: From a flat list of values to a structure of tensors; calls layers.
            inputs: The values: tensors; whatever else stands among them is passed on as it is.
            compiled: Whether the step around is compiled by XLA or torch.compile.
        """
        while True:
            try:
                return self._attempt(function, list(inputs), compiled)
            except UntrackedStateError:
                continue

    def _attempt(self, function: Callable[[list[Any]], Any], inputs: list[Any], compiled: bool) -> Any:
        variables = self._variables()
        pinned = [not variable.trainable and self._is_pinned(variable) for variable in variables]
        given = keras_graph.values_of(variables)
        state = [keras.ops.copy(value) if pin else value for value, pin in zip(given, pinned, strict=True)]
        dense = [place for place, tensor in enumerate(inputs) if keras_graph.is_dense(tensor)]
        masks = [keras_graph.mask_of(inputs[place]) for place in dense]
        masked = [place for place, mask in zip(dense, masks, strict=True) if mask is not None]
        closed = [None if place in dense else tensor for place, tensor in enumerate(inputs)]
        surroundings = keras_graph.Surroundings()
        results: list[_Results] = []

        def pure(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
            values = list(closed)
            for place, tensor in zip(dense, tensors, strict=False):
                values[place] = tensor
            for place, mask in zip(masked, tensors[len(dense) :], strict=False):
                keras_graph.set_mask(values[place], mask)
            own = tensors[len(dense) + len(masked) :]
            if results:
                with surroundings.restored(), keras_graph.Watched(variables, own) as scope:
                    outputs = function(values)
                return self._taken_apart(outputs, scope)[:2]
            with keras_graph.Watched(variables, own) as scope:
                outputs = function(values)
            self._check(scope, {id(v) for v, pin in zip(variables, pinned, strict=True) if pin})
            outputs, others, known = self._taken_apart(outputs, scope)
            results.append(known)
            return outputs, others

        arguments = [inputs[place] for place in dense] + [mask for mask in masks if mask is not None] + state
        num_inputs = len(arguments) - len(state)
        outputs, others = self._backend.rematerialized(pure, num_inputs=num_inputs, compiled=compiled)(arguments)
        return _put_together(results[0], outputs, others)

    def _variables(self) -> list[Any]:
        return list({id(v): v for v in (*keras_graph.variables_of(self._layers), *self._others)}.values())

    def _is_pinned(self, variable: Any) -> bool:
        return id(variable) in self._pinned or layer_bytes.variable_bytes([variable]) <= _PINNED

    def _check(self, scope: Any, pinned: set[int]) -> None:
        """Learns of variables that no layer of the segment tracks, and of large ones that change."""
        unknown = list(scope.unknown.values())
        moved = set(scope.changed) - pinned
        if unknown or moved:
            scope.take_losses(self._layers)
            self._others += unknown
            self._pinned |= moved
            raise UntrackedStateError

    def _taken_apart(self, structure: Any, scope: Any) -> tuple[list[Any], list[Any], _Results]:
        flat = keras.tree.flatten(structure)
        places = tuple(place for place, leaf in enumerate(flat) if keras_graph.is_dense(leaf))
        masks = [keras_graph.mask_of(flat[place]) for place in places]
        added = scope.take_losses(self._layers)
        changed = tuple(scope.changed.values())
        outputs = [flat[place] for place in places] + [loss for _, loss in added]
        others = [mask for mask in masks if mask is not None]
        others += [scope.get_current_value(variable) for variable in changed]
        rest = [None if place in places else leaf for place, leaf in enumerate(flat)]
        masked = tuple(place for place, mask in zip(places, masks, strict=True) if mask is not None)
        known = _Results(
            keras.tree.pack_sequence_as(structure, rest), places, masked, tuple(layer for layer, _ in added), changed
        )
        return outputs, others, known


def _put_together(known: _Results, outputs: list[Any], others: list[Any]) -> Any:
    """The results as the plain call returns them; what it changes is changed."""
    flat = keras.tree.flatten(known.structure)
    for place, tensor in zip(known.places, outputs, strict=False):
        flat[place] = tensor
    for place, mask in zip(known.masked, others, strict=False):
        keras_graph.set_mask(flat[place], mask)
    for layer, loss in zip(known.owners, outputs[len(known.places) :], strict=True):
        layer.add_loss(loss)
    for variable, value in zip(known.changed, others[len(known.masked) :], strict=True):
        keras_graph.assign(variable, value)
    return keras.tree.pack_sequence_as(known.structure, flat)
