"""Keras' private parts that rematerialization needs: the graph of a built model, and what surrounds a layer's call.

The rule of ``keras_seam`` holds here too: each private name has a test in ``tests/contract/test_keras_seam.py``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras.src import backend as keras_backend
from keras.src.backend.common import global_state, symbolic_scope
from keras.src.models import functional as keras_functional
from keras.src.models import sequential as keras_sequential

from memfit.backends import keras_seam

# The graph of a model


def graph_of(model: Any) -> Any | None:
    """The Functional whose graph the model's call runs through; None where its call is a class' own, or not built yet."""
    cls = type(model)
    if cls.__call__ is not keras.layers.Layer.__call__:
        return None
    if isinstance(model, keras_functional.Functional) and cls.call is keras_functional.Functional.call:
        return model
    if isinstance(model, keras_sequential.Sequential) and cls.call is keras_sequential.Sequential.call:
        return model._functional
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One step of a flattened graph: a call of a layer or of another Keras operation, or the entrance of a nested model.

    Attributes:
        called: The layer or operation; for an entrance the nested model's Functional.
        enters: Whether this is an entrance, which converts the nested model's inputs as its call would.
        reads: The numbers of the tensors that it takes, each once.
        writes: The numbers of the tensors that it gives.
        is_view: Whether what it gives lies in the memory of what it takes.
    """

    called: Any
    enters: bool
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    is_view: bool
    _node: Any
    _keys: tuple[tuple[int, int], ...]

    def arguments(self, values: Mapping[int, Any]) -> tuple[Any, Any]:
        """``(args, kwargs)`` of the call, from the tensors by their numbers."""
        return self._node.arguments.fill_in({key: values[number] for key, number in self._keys})

    def run(self, values: Mapping[int, Any], *, training: bool) -> list[Any]:
        """The tensors that it writes."""
        args, kwargs = self.arguments(values)
        if self.enters:
            return self.called._standardize_inputs(args[0])
        return keras.tree.flatten(keras_functional.operation_fn(self.called, training=training)(*args, **kwargs))

    def specs(self, values: Mapping[int, Any]) -> list[Any]:
        """The shapes and dtypes of what it writes, as KerasTensors, from those of what it reads."""
        args, kwargs = self.arguments(values)
        if self.enters:
            return keras.tree.flatten(args[0])
        return keras.tree.flatten(self.called.compute_output_spec(*args, **kwargs))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A model's operations in an order that can be run, nested models walked into.

    Attributes:
        operations: In order.
        inputs: The numbers of the model's flat inputs.
        outputs: The numbers of its flat outputs.
        sparse: The numbers of tensors that are not dense.
        symbols: The KerasTensor of each number.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sparse: frozenset[int]
    symbols: tuple[Any, ...]
    _functional: Any

    def entered(self, inputs: Any, mask: Any) -> list[Any]:
        """The model's inputs as its graph takes them, flat, with their masks on them."""
        flat = self._functional._standardize_inputs(inputs)
        for tensor, one in zip(flat, keras.tree.flatten(mask) if mask is not None else [], strict=False):
            if one is not None:
                set_mask(tensor, one)
        return flat

    def left(self, outputs: Sequence[Any]) -> Any:
        """The model's outputs in the structure that its call returns."""
        packed = keras.tree.pack_sequence_as(self._functional._outputs_struct, list(outputs))
        return keras_functional.unpack_singleton(packed)


def flattened(functional: Any) -> Graph:
    """The graph of a Functional, with the calls of nested Functional and Sequential models walked into."""
    builder = _Builder()
    inputs = [builder.number(tensor) for tensor in functional.inputs]
    outputs = builder.walk(functional, inputs)
    sparse = [i for i, symbol in enumerate(builder.symbols) if symbol.sparse or getattr(symbol, "ragged", False)]
    return Graph(
        tuple(builder.operations), tuple(inputs), tuple(outputs), frozenset(sparse), tuple(builder.symbols), functional
    )


class _Builder:
    """Numbers the tensors of a graph and of each call of a nested one."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.symbols: list[Any] = []

    def number(self, symbol: Any) -> int:
        self.symbols.append(symbol)
        return len(self.symbols) - 1

    def walk(self, functional: Any, inputs: Sequence[int]) -> list[int]:
        """Appends the operations of one call; returns the numbers of its outputs."""
        numbers = {id(tensor): number for tensor, number in zip(functional.inputs, inputs, strict=True)}
        for node in _ordered_nodes(functional):
            keys = {id(tensor): numbers[id(tensor)] for tensor in node.input_tensors}
            nested = graph_of(node.operation) if _is_plain_call(node) else None
            if nested is None:
                written = [self.number(tensor) for tensor in node.outputs]
                self._append(node, None, keys, written)
            else:
                entered = [self.number(tensor) for tensor in nested.inputs]
                self._append(node, nested, keys, entered)
                written = self.walk(nested, entered)
            numbers.update(zip(map(id, node.outputs), written, strict=True))
        return [numbers[id(tensor)] for tensor in functional.outputs]

    def _append(self, node: Any, entered: Any | None, keys: dict[int, int], written: list[int]) -> None:
        called = node.operation if entered is None else entered
        view = entered is not None or type(called).__name__ in _VIEWS
        reads = tuple(dict.fromkeys(keys.values()))
        self.operations.append(
            Operation(called, entered is not None, reads, tuple(written), view, node, tuple(keys.items()))
        )


_VIEWS = ("Reshape", "Flatten", "Identity", "ExpandDims", "Squeeze")


def _is_plain_call(node: Any) -> bool:
    """Whether a node calls a nested graph in a way that is the same as running the graph's operations one by one."""
    model = node.operation
    graph = graph_of(model)
    given = {name for name, value in node.arguments.kwargs.items() if keras_seam.flatten(value)}
    if graph is None or len(node.arguments.args) != 1 or not given <= {"training"}:
        return False
    # A mask that reaches a nested model is also given to such outputs as have none.
    masked = any(mask_of(tensor) is not None for tensor in node.input_tensors)
    own_mask = type(model).compute_mask is not keras.layers.Layer.compute_mask
    # Without an outer call (on JAX) each call of a layer forgets the losses of its call before.
    called = [inner.operation for nodes in graph._nodes_by_depth.values() for inner in nodes if not inner.is_input]
    repeated = len(set(map(id, called))) < len(called)
    return not (masked or own_mask or repeated or getattr(model, "activity_regularizer", None) is not None)


def _ordered_nodes(functional: Any) -> list[Any]:
    """The nodes in an order that keeps few tensors live: depth first; in Keras' own where that would change the result."""
    by_depth = functional._nodes_by_depth
    keras_order = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]
    given = {id(tensor) for tensor in functional.inputs}
    keras_order = [node for node in keras_order if not all(id(tensor) in given for tensor in node.outputs)]
    known = set(map(id, keras_order))
    order: list[Any] = []
    done: set[int] = set()
    stack = [(_node_of(tensor), False) for tensor in reversed(functional.outputs) if id(tensor) not in given]
    while stack:
        node, ready = stack.pop()
        if id(node) in done or id(node) not in known:
            continue
        if ready:
            done.add(id(node))
            order.append(node)
            continue
        stack.append((node, True))
        stack += [(_node_of(tensor), False) for tensor in reversed(node.input_tensors) if id(tensor) not in given]
    return order if len(order) == len(keras_order) and _uses(order) == _uses(keras_order) else keras_order


def _node_of(tensor: Any) -> Any:
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def _uses(nodes: list[Any]) -> dict[int, list[int]]:
    """For each state that more than one node may change - a shared seed, a shared moving average - the nodes in order."""
    uses: dict[int, list[int]] = {}
    for node in nodes:
        for variable in getattr(node.operation, "non_trainable_variables", ()):
            uses.setdefault(id(variable), []).append(id(node))
    return uses


# What surrounds a call


def mask_of(tensor: Any) -> Any | None:
    """The Keras mask that travels with a tensor."""
    return keras_backend.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Lets a mask travel with a tensor."""
    keras_backend.set_keras_mask(tensor, mask)


def is_dense(leaf: Any) -> bool:
    """Whether a leaf is a tensor of the framework that is neither sparse nor ragged."""
    composite = any(hasattr(leaf, name) for name in ("dense_shape", "row_splits", "todense"))
    return bool(keras.ops.is_tensor(leaf)) and not composite


def in_symbolic_scope() -> bool:
    """Whether only shapes are being computed."""
    return bool(symbolic_scope.in_symbolic_scope())


def training_in_context() -> Any:
    """The ``training`` that the outer call of a layer passes on to those inside; None where none said."""
    context = global_state.get_global_attribute("current_call_ctx")
    return None if context is None else context.get_value("training")


class Surroundings:
    """What Keras keeps in global state while a layer is called, as it was when this was made."""

    def __init__(self) -> None:
        self._kept = {name: copy.copy(global_state.get_global_attribute(name)) for name in _SURROUNDING}

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the surroundings are those again."""
        previous = {name: global_state.get_global_attribute(name) for name in _SURROUNDING}
        for name, value in self._kept.items():
            global_state.set_global_attribute(name, copy.copy(value))
        try:
            yield
        finally:
            for name, value in previous.items():
                global_state.set_global_attribute(name, value)


_SURROUNDING = ("current_call_ctx", "autocast_scope", "name_scope_stack")


def variables_of(layers: Sequence[Any]) -> list[Any]:
    """All variables of some layers and operations, seeds included, each once."""
    found = [variable for layer in layers for variable in getattr(layer, "variables", ())]
    return list({id(variable): variable for variable in found}.values())


def values_of(variables: Sequence[Any]) -> list[Any]:
    """The variables' values as tensors, never cast, read through the stateless scope that is open."""
    with keras_backend.AutocastScope(None):
        return [keras.ops.convert_to_tensor(variable.value) for variable in variables]


def assign(variable: Any, value: Any) -> None:
    """Assigns a value as it is, through the stateless scope that is open."""
    with keras_backend.AutocastScope(None):
        variable.assign(value)


class Watched(keras.StatelessScope):
    """A stateless scope that knows which variables were changed, and which were touched that it was not given.

    Attributes:
        changed: The variables that were assigned to, in order.
        unknown: The variables that were read or assigned to without being in the mapping.
    """

    def __init__(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        with keras_backend.AutocastScope(None):
            super().__init__(list(zip(variables, values, strict=True)), collect_losses=True, initialize_variables=False)
        self._given = set(map(id, variables))
        self.changed: dict[int, Any] = {}
        self.unknown: dict[int, Any] = {}

    def get_current_value(self, variable: Any) -> Any:
        if id(variable) not in self._given:
            self.unknown[id(variable)] = variable
        return super().get_current_value(variable)

    def add_update(self, update: Any) -> None:
        variable, _ = update
        self.changed[id(variable)] = variable
        if id(variable) not in self._given:
            self.unknown[id(variable)] = variable
        super().add_update(update)

    def take_losses(self, layers: Sequence[Any]) -> list[tuple[Any, Any]]:
        """``(layer, loss)`` of each loss that was added inside, as if the layers had never heard of them."""
        owners = {}
        for layer in _with_inner(layers):
            mine = {id(loss) for loss in self.losses} & layer._loss_ids
            layer._loss_ids -= mine
            owners.update(dict.fromkeys(mine, layer))
        return [(owners[id(loss)], loss) for loss in self.losses]


def _with_inner(layers: Sequence[Any]) -> list[Any]:
    found = [one for layer in layers if hasattr(layer, "_flatten_layers") for one in layer._flatten_layers()]
    return list({id(layer): layer for layer in found}.values())


# What stands in the way


def is_rematerialized(layer: Any) -> bool:
    """Whether the layer was made under ``keras.RematScope``."""
    return getattr(layer, "_remat_mode", None) is not None


def keeps_foreign_state(layer: Any) -> bool:
    """Whether the layer wraps a module whose state is not in Keras variables, so that running it twice changes it twice."""
    return any(isinstance(one, keras.layers.TorchModuleWrapper) for one in _with_inner([layer]))


def direct_layers(model: Any) -> list[Any]:
    """The layers that are attributes of the model, or elements of its lists, each once."""
    return list({id(layer): layer for layer in model._layers}.values())


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer, as shapes.

    Attributes:
        layer: What was called.
        inside: The layers whose calls it lay in, outermost first.
        inputs: ``(shape, dtype)`` of the tensors it took.
        outputs: The same of those it gave.
    """

    layer: Any
    inside: tuple[Any, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    outputs: tuple[tuple[tuple[int, ...], str], ...]


def symbolic_calls(function: Callable[..., Any], *specs: Any) -> list[Call]:
    """Every call of a layer that a function of tensors makes, in order of return; computes nothing.

    Args:
        function: What to call.
        specs: Its arguments: nested structures of anything with ``shape`` and ``dtype``.
    """
    calls: list[Call] = []
    inside: list[Any] = []
    original = keras.layers.Layer.__call__

    @functools.wraps(original)
    def recording(layer: Any, *args: Any, **kwargs: Any) -> Any:
        around = tuple(inside)
        inside.append(layer)
        try:
            outputs = original(layer, *args, **kwargs)
        finally:
            inside.pop()
        calls.append(Call(layer, around, _shapes((args, kwargs)), _shapes(outputs)))
        return outputs

    inputs = [keras.tree.map_structure(_symbol, spec) for spec in specs]
    keras.layers.Layer.__call__ = recording
    try:
        keras_backend.compute_output_spec(function, *inputs)
    finally:
        keras.layers.Layer.__call__ = original
    return calls


def _symbol(spec: Any) -> Any:
    return None if spec is None else keras.KerasTensor(tuple(spec.shape), keras.backend.standardize_dtype(spec.dtype))


def _shapes(structure: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
    leaves = (leaf for leaf in keras.tree.flatten(structure) if hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
    found = ((tuple(leaf.shape), keras.backend.standardize_dtype(leaf.dtype)) for leaf in leaves)
    return tuple((shape, dtype) for shape, dtype in found if None not in shape)
