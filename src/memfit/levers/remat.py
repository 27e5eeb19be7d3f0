"""Rematerialization: parts of the model forget their activations and compute them again in the backward pass. Exact.

The graph of a Functional or Sequential model is cut into segments where few tensors are live (Chen et al. 2016,
arXiv:1604.06174); which segments are recomputed is chosen by bytes and cost (``remat_choice``). Of a model without a graph
each direct layer can be a segment of its own. Gradients, moving averages, seeds and losses are those of the plain step
(``remat_segment``).

    parts = remat.chain(model, spec)
    arrangement = remat.choose(parts, parts.plain_bytes // 2)
    with remat.attached(model, arrangement, backend):
        backend.step_bytes(model, spec, split)                       # the analysis sees it, and so does
        with executing.attached(model, split, backend):              # a run, in micro-batches or whole
            model.fit(...)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from memfit.backends import keras_graph, keras_seam
from memfit.backends.protocol import Backend
from memfit.levers.remat_choice import (
    Chain,
    choose,
    everything,
    held_shares,
    issued_again,
    ladder,
    peak_bytes,
    recomputation,
    smallest_bytes,
)
from memfit.levers.remat_graph import chain
from memfit.levers.remat_segment import RecomputedSegment
from memfit.levers.replaced import fresh_train_function, replaced_attribute
from memfit.records import Remat

__all__ = [
    "Chain",
    "attached",
    "blocked_reason",
    "chain",
    "choose",
    "everything",
    "fresh_train_function",
    "held_shares",
    "issued_again",
    "ladder",
    "peak_bytes",
    "recomputation",
    "smallest_bytes",
]


def blocked_reason(model: Any) -> str | None:
    """Why no part of the model can be recomputed, or None.

    Args:
        model: A built model.
    """
    layers = [model, *keras_seam.flat_layers(model)]
    if keras.config.is_nnx_enabled():
        return "Keras keeps its variables in Flax NNX, where state cannot be passed through a recomputed function"
    if keras_seam.is_distributed(model):
        return "the model is distributed over several devices, where recomputation was not tried"
    if any(keras_graph.is_rematerialized(layer) for layer in layers):
        return "layers of the model were made under keras.RematScope and are recomputed already"
    if any(getattr(layer, "quantization_mode", None) for layer in layers):
        return "the model is quantized"
    if not model.trainable_variables:
        return "the model has no trainable weights"
    if keras_graph.graph_of(model) is None and not keras_graph.direct_layers(model):
        return f"{type(model).__name__} has neither a graph nor layers as attributes, which could be recomputed"
    return None


@contextlib.contextmanager
def attached(model: Any, remat: Remat, backend: Backend) -> Iterator[None]:
    """Inside, the segments of the model are recomputed wherever it is called for training; afterwards nothing is left.

    ``train_step``, micro-batched steps, ``backend.gradients`` and the analyses see it. It goes around
    ``executing.attached``, which must come off first. Inference runs the plain way.

    Args:
        model: A built model without a ``blocked_reason``.
        remat: Positions in ``chain(model, ...)``.
        backend: The current backend.

    Raises:
        ValueError: The arrangement is not one of this model.
    """
    functional = keras_graph.graph_of(model)
    calls = (
        _block_calls(model, remat, backend) if functional is None else _graph_call(model, functional, remat, backend)
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras_seam.marked_with(model, remat))
        for layer, call in calls:
            stack.enter_context(replaced_attribute(layer, "call", call))
        stack.enter_context(fresh_train_function(model, backend))
        yield


def _check(remat: Remat, number: int, what: str) -> None:
    positions = [place for segment in remat.segments for place in (segment.start, segment.stop)]
    if positions != sorted(positions) or any(s.start >= s.stop for s in remat.segments):
        raise ValueError(f"The segments must be in order and apart. Received: remat={remat}")
    if positions and (positions[0] < 0 or positions[-1] > number):
        raise ValueError(f"The model has {number} {what}. Received: remat={remat}. Choose from chain(model, spec).")


# A model with a graph


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Operations that run together, recomputed or not.

    Attributes:
        operations: In order.
        reads: The numbers of the tensors from before.
        writes: The numbers of those that later pieces read.
        forgets: The numbers that nobody reads after it.
        recomputed: Runs it as a recomputed segment; None to run it plainly.
    """

    operations: tuple[Any, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    forgets: tuple[int, ...]
    recomputed: RecomputedSegment | None = None

    def run(self, values: list[Any], *, compiled: bool) -> Any:
        """``results``, recomputed in the backward pass where the piece is."""
        if self.recomputed is None:
            return self.results(values)
        return self.recomputed(self.results, values, compiled=compiled)

    def results(self, values: list[Any]) -> list[Any]:
        """What the operations write for later, from what they read."""
        known = dict(zip(self.reads, values, strict=True))
        for operation in self.operations:
            known.update(zip(operation.writes, operation.run(known, training=True), strict=False))
        return [known[number] for number in self.writes]


def _graph_call(model: Any, functional: Any, remat: Remat, backend: Backend) -> list[tuple[Any, Callable[..., Any]]]:
    """The model with the function that stands in for its ``call``."""
    graph = keras_graph.flattened(functional)
    pieces = _pieces(graph, remat, backend)

    def call(inputs: Any, training: Any = None, mask: Any = None, **context: Any) -> Any:
        if training is not True or context or keras_graph.in_symbolic_scope():
            return type(model).call(model, inputs, training=training, mask=mask, **context)
        values = dict(zip(graph.inputs, graph.entered(inputs, mask), strict=True))
        for piece in pieces:
            _run(piece, values, compiled=keras_seam.is_jitted(model))
        return graph.left([values[number] for number in graph.outputs])

    return [(model, call)]


def _run(piece: _Piece, values: dict[int, Any], *, compiled: bool) -> None:
    inputs = [values[number] for number in piece.reads]
    values.update(zip(piece.writes, piece.run(inputs, compiled=compiled), strict=True))
    for number in piece.forgets:
        values.pop(number, None)


def _pieces(graph: Any, remat: Remat, backend: Backend) -> list[_Piece]:
    number = len(graph.operations)
    _check(remat, number, "operations")
    bounds = [(segment.start, segment.stop, True) for segment in remat.segments]
    starts = [0, *(segment.stop for segment in remat.segments)]
    stops = [*(segment.start for segment in remat.segments), number]
    bounds += [(start, stop, False) for start, stop in zip(starts, stops, strict=True) if start < stop]
    last_read = _last_reads(graph)
    pieces = [_piece(graph, (start, stop), last_read) for start, stop, _ in sorted(bounds)]
    return [
        dataclasses.replace(piece, recomputed=_recomputed(piece, graph, backend)) if recomputed else piece
        for piece, (_, _, recomputed) in zip(pieces, sorted(bounds), strict=True)
    ]


def _last_reads(graph: Any) -> Mapping[int, int]:
    """The last operation that reads each tensor; the number of operations for the model's outputs."""
    last: dict[int, int] = {}
    for place, operation in enumerate(graph.operations):
        last.update(dict.fromkeys(operation.reads, place))
    last.update(dict.fromkeys(graph.outputs, len(graph.operations)))
    return last


def _piece(graph: Any, bounds: tuple[int, int], last_read: Mapping[int, int]) -> _Piece:
    start, stop = bounds
    operations = graph.operations[start:stop]
    made = [number for operation in operations for number in operation.writes]
    read = dict.fromkeys(number for operation in operations for number in operation.reads)
    inputs = tuple(number for number in read if number not in set(made))
    outputs = tuple(dict.fromkeys(number for number in made if last_read.get(number, -1) >= stop))
    return _Piece(operations, inputs, outputs, tuple(number for number in inputs if last_read[number] < stop))


def _recomputed(piece: _Piece, graph: Any, backend: Backend) -> RecomputedSegment:
    if graph.sparse & set(piece.writes):
        raise ValueError(
            f"A segment ends where a sparse tensor is passed on, at {piece.operations[-1].called.name}. "
            "Choose segments from chain(model, spec)."
        )
    layers = [operation.called for operation in piece.operations if not operation.enters]
    return RecomputedSegment(layers, backend)


# A model without one


def _block_calls(model: Any, remat: Remat, backend: Backend) -> list[tuple[Any, Callable[..., Any]]]:
    """The layers that are recomputed, each with the function that stands in for its ``call``."""
    blocks = keras_graph.direct_layers(model)
    _check(remat, len(blocks), "layers")
    chosen = [blocks[place] for segment in remat.segments for place in range(segment.start, segment.stop)]
    return [(block, _block_call(model, block, backend)) for block in chosen]


def _block_call(model: Any, block: Any, backend: Backend) -> Callable[..., Any]:
    previous = vars(block).get("call")

    def plain(*args: Any, **kwargs: Any) -> Any:
        return previous(*args, **kwargs) if previous is not None else type(block).call(block, *args, **kwargs)

    segment = RecomputedSegment([block], backend)

    def call(*args: Any, **kwargs: Any) -> Any:
        training = kwargs.get("training")
        if training is None:
            training = keras_graph.training_in_context()
        if training is False or keras_graph.in_symbolic_scope() or not block.built:
            return plain(*args, **kwargs)
        flat = keras.tree.flatten((args, kwargs))
        structure = args, kwargs

        def function(values: list[Any]) -> Any:
            again, keywords = keras.tree.pack_sequence_as(structure, values)
            return plain(*again, **keywords)

        return segment(function, flat, compiled=keras_seam.is_jitted(model))

    return call
