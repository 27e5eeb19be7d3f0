"""A model as a chain of operations with their bytes and costs, for the choice of what to recompute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from memfit.backends import keras_graph, keras_seam
from memfit.levers import remat_cost
from memfit.levers.remat_choice import Chain, Tensor, Unit

_NOT_INFERRED = (ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, RuntimeError)
"""What layers raise that cannot tell their shapes from those of their inputs."""


def chain(model: Any, spec: Any) -> Chain:
    """The sequence of a built model's operations at a batch size.

    A Functional or Sequential model is its graph, nested ones walked into; another model is its direct layers, each by
    itself, in the order in which it holds them.

    Args:
        model: A built model.
        spec: ``(x, y, sample_weight)`` of ``TensorSpec``: of the batch, or of a micro-batch.
    """
    functional = keras_graph.graph_of(model)
    if functional is None:
        return _chain_of_blocks(model, spec[0])
    return _chain_of_graph(keras_graph.flattened(functional), spec[0])


def _chain_of_graph(graph: Any, x: Any) -> Chain:
    symbols = _symbols(graph, x)
    last_read: dict[int, int] = {}
    for place, operation in enumerate(graph.operations):
        last_read.update(dict.fromkeys(operation.reads, place))
    end = len(graph.operations)
    last_read.update(dict.fromkeys(graph.outputs, end))
    tensors = tuple(
        Tensor(place, last_read[number], remat_cost.nbytes(_shapes([symbols[number]])), number in graph.sparse)
        for place, operation in enumerate(graph.operations)
        for number in operation.writes
        if number in last_read
    )
    return Chain(tuple(_unit(operation, symbols) for operation in graph.operations), tensors)


def _symbols(graph: Any, x: Any) -> dict[int, Any]:
    """The shape and dtype of each tensor with the batch's own sizes."""
    batch_size = keras_seam.flatten(x)[0].shape[0]
    symbols = {number: _sized(symbol, batch_size) for number, symbol in enumerate(graph.symbols)}
    given = keras.tree.flatten(x)
    if len(given) == len(graph.inputs):
        for number, leaf in zip(graph.inputs, given, strict=True):
            if leaf is not None and len(leaf.shape) == len(symbols[number].shape):
                symbols[number] = keras.KerasTensor(leaf.shape, symbols[number].dtype)
    if all(None not in symbol.shape[1:] for symbol in graph.symbols):
        return symbols
    for operation in graph.operations:
        try:
            found = operation.specs(symbols)
        except _NOT_INFERRED:
            continue
        symbols.update(zip(operation.writes, found, strict=True))
    return symbols


def _sized(symbol: Any, batch_size: int) -> Any:
    first, *rest = symbol.shape or (1,)
    shape = (first or batch_size, *(size or 1 for size in rest)) if symbol.shape else ()
    return keras.KerasTensor(shape, symbol.dtype)


def _unit(operation: Any, symbols: dict[int, Any]) -> Unit:
    called = operation.called
    name = getattr(called, "path", None) or called.name
    if operation.is_view:
        return Unit(name, 0, 0.0)
    inputs = _shapes([symbols[number] for number in operation.reads])
    outputs = _shapes([symbols[number] for number in operation.writes])
    fixed = keras_graph.keeps_foreign_state(called)
    calls = _inner_calls(operation, symbols) if getattr(called, "_layers", None) else []
    own = remat_cost.retained_bytes(called, inputs, outputs), remat_cost.computation(called, inputs, outputs)
    inner, rounds = _summed(calls), remat_cost.rounds(called, inputs)
    return Unit(name, own[0] + inner[0], own[1] + inner[1], fixed, rounds + sum(_rounds(call) for call in calls))


def _inner_calls(operation: Any, symbols: dict[int, Any]) -> list[Any]:
    """The calls of layers inside a composite layer's; none where it cannot be told."""
    args, kwargs = operation.arguments(symbols)
    try:
        calls = keras_graph.symbolic_calls(lambda *tensors: operation.called(*tensors, **kwargs), *args)
    except _NOT_INFERRED:
        return []
    return [call for call in calls if call.inside]


def _summed(calls: Sequence[Any]) -> tuple[int, float]:
    """Bytes and cost of the calls of layers that call no others."""
    composite = {id(layer) for call in calls for layer in call.inside}
    leaves = [call for call in calls if id(call.layer) not in composite]
    leaves += [call for call in calls if id(call.layer) in composite and _computes_itself(call.layer)]
    retained = sum(remat_cost.retained_bytes(call.layer, call.inputs, call.outputs) for call in leaves)
    return retained, sum(remat_cost.computation(call.layer, call.inputs, call.outputs) for call in leaves)


def _rounds(call: Any) -> int:
    return remat_cost.rounds(call.layer, call.inputs)


def _computes_itself(layer: Any) -> bool:
    """Whether a layer that calls others keeps more than they do."""
    return isinstance(layer, (keras.layers.RNN, keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention))


def _chain_of_blocks(model: Any, x: Any) -> Chain:
    calls = keras_graph.symbolic_calls(lambda inputs: keras_seam.forward(model, inputs, training=True), x)
    blocks = keras_graph.direct_layers(model)
    units, tensors = [], []
    for place, block in enumerate(blocks):
        own = [call for call in calls if call.layer is block and call.inside == (model,)]
        within = [call for call in calls if len(call.inside) > 1 and call.inside[1] is block]
        retained, cost = _summed([*own, *within])
        fixed = not own or keras_graph.keeps_foreign_state(block)
        rounds = sum(_rounds(call) for call in (*own, *within))
        units.append(Unit(getattr(block, "path", None) or block.name, retained, cost, fixed, rounds))
        tensors.append(Tensor(place, place + 1, sum(remat_cost.nbytes(call.outputs) for call in own)))
    return Chain(tuple(units), tuple(tensors), joinable=False)


def _shapes(symbols: Sequence[Any]) -> list[tuple[tuple[int, ...], str]]:
    return [(tuple(symbol.shape), keras.backend.standardize_dtype(symbol.dtype)) for symbol in symbols]
