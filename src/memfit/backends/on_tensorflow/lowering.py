"""A TensorFlow graph as a program: which operations allocate, which share, what a loop keeps.

Operations run in the order of their creation, without those that nothing needs (TensorFlow prunes them too).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from memfit.backends.on_tensorflow import heap
from memfit.backends.on_tensorflow.program import Bound, Operation, Program, UnknownSizeError
from memfit.backends.on_tensorflow.scratch import scratch_bytes

# The output is the first input's memory.
_ALIASES = frozenset(
    [
        "Identity",
        "Reshape",
        "ExpandDims",
        "Squeeze",
        "StopGradient",
        "PreventGradient",
        "Snapshot",
        "CheckNumerics",
        "PlaceholderWithDefault",
        "EnsureShape",
        "Bitcast",
        "TensorListResize",
        "OptimizationBarrier",
    ]
)

# An output may be an input's memory where nothing reads that input later.
_IN_PLACE = frozenset(
    [
        "Add",
        "AddV2",
        "Sub",
        "Mul",
        "Div",
        "RealDiv",
        "DivNoNan",
        "MulNoNan",
        "Maximum",
        "Minimum",
        "Pow",
        "SquaredDifference",
        "Xdivy",
        "Xlogy",
        "Xlog1py",
        "FloorDiv",
        "FloorMod",
        "Mod",
        "AddN",
        "AccumulateNV2",
        "BiasAdd",
        "BiasAddV1",
        "Abs",
        "Neg",
        "Inv",
        "Reciprocal",
        "Exp",
        "Expm1",
        "Log",
        "Log1p",
        "Sqrt",
        "Rsqrt",
        "Square",
        "Sign",
        "Sin",
        "Cos",
        "Tan",
        "Tanh",
        "Sigmoid",
        "Erf",
        "Erfc",
        "Round",
        "Floor",
        "Ceil",
        "Rint",
        "Relu",
        "Relu6",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Softplus",
        "Softsign",
        "Softmax",
        "LogSoftmax",
        "ReluGrad",
        "Relu6Grad",
        "LeakyReluGrad",
        "EluGrad",
        "SeluGrad",
        "SoftplusGrad",
        "SoftsignGrad",
        "TanhGrad",
        "SigmoidGrad",
        "SqrtGrad",
        "RsqrtGrad",
        "InvGrad",
        "ReciprocalGrad",
        "ClipByValue",
        "LogicalNot",
        "LogicalAnd",
        "LogicalOr",
        "SelectV2",
        "Select",
        "Cast",
        "ZerosLike",
        "TensorScatterUpdate",
        "TensorScatterAdd",
    ]
)

# Nothing that lasts: handles, what is held between steps, and shape arithmetic of a few numbers.
_NOTHING = frozenset(
    [
        "NoOp",
        "Assert",
        "Print",
        "PrintV2",
        "VarHandleOp",
        "Placeholder",
        "Const",
        "VarIsInitializedOp",
        "ReadVariableOp",
        "Shape",
        "ShapeN",
        "Size",
        "Rank",
        "BroadcastGradientArgs",
        "BroadcastArgs",
        "ConcatOffset",
        "InvertPermutation",
        "TensorListLength",
        "TensorListElementShape",
        "TensorListGetItem",
    ]
)

# No output has more elements than the largest input, whatever its shape turns out to be.
_BOUNDED = _IN_PLACE | frozenset(
    [
        "Unique",
        "UniqueV2",
        "UniqueWithCounts",
        "UnsortedSegmentSum",
        "SegmentSum",
        "Slice",
        "StridedSlice",
        "Transpose",
        "Sum",
        "Mean",
        "Max",
        "Min",
        "Prod",
        "All",
        "Any",
        "Less",
        "LessEqual",
        "Greater",
        "GreaterEqual",
        "Equal",
        "NotEqual",
        "GatherV2",
        "Gather",
        "Split",
        "SplitV",
        "Unpack",
        "ResourceGather",
    ]
)

# No output is larger than all inputs together.
_JOINED = frozenset(
    ["ConcatV2", "Concat", "Pack", "TensorListConcatV2", "TensorListConcat", "TensorListStack", "TensorListGather"]
)

_CALLS = frozenset(("PartitionedCall", "StatefulPartitionedCall"))
_LOOPS = frozenset(("While", "StatelessWhile"))
_BRANCHES = frozenset(("If", "StatelessIf", "Case", "StatelessCase"))
_LISTS = frozenset(("EmptyTensorList", "TensorListReserve"))
_PUSHES = frozenset(("TensorListPushBack", "TensorListSetItem"))


def lower(graph: Any) -> Program:
    """The program of a ``FuncGraph``; its arguments and results are the graph's inputs and outputs.

    Raises:
        UnknownSizeError: Something that matters cannot be read from the graph.
    """
    lowering = _Lowering()
    arguments = [lowering.new() for _ in graph.inputs]
    results = lowering.graph(graph, arguments)
    return Program.of(lowering.operations, arguments, results)


def known_bytes(tensor: Any) -> int | None:
    """A tensor's bytes where its shape is static."""
    if not tensor.shape.is_fully_defined():
        return None
    return math.prod(tensor.shape.as_list()) * _width(tensor.dtype)


class _Lowering:
    """Operations so far. Called functions go in line; the bodies of loops and branches become programs of their own."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._places: dict[Any, list[int]] = {}
        self._numbers = itertools.count()

    def new(self) -> int:
        return next(self._numbers)

    def graph(self, graph: Any, arguments: Sequence[int], after: tuple[int, ...] = (), within: str = "") -> list[int]:
        """Adds a graph's operations, each after those at the given places; returns the values of its outputs.

        ``within`` is the name of the call that they stand for, with a slash.
        """
        values = {tensor.name: value for tensor, value in zip(graph.inputs, arguments, strict=True)}
        for op in _needed(graph):
            if op.outputs and op.outputs[0].name in values:
                continue
            inputs = tuple(values[tensor.name] for tensor in op.inputs)
            before = (*after, *(place for source in op.control_inputs for place in self._places.get(source, ())))
            scope = within + op.name
            first = len(self.operations)
            if op.type in _CALLS:
                outputs = self.graph(_functions(op, "f")[0], inputs, before, f"{scope}/")
            else:
                outputs = [self.new() for _ in op.outputs]
                self.operations.append(_operation(op, inputs, tuple(outputs), before, scope))
            self._places[op] = list(range(first, len(self.operations)))
            values.update((tensor.name, value) for tensor, value in zip(op.outputs, outputs, strict=True))
        return [values[tensor.name] for tensor in graph.outputs]


def _operation(
    op: Any, inputs: tuple[int, ...], outputs: tuple[int, ...], after: tuple[int, ...], scope: str
) -> Operation:
    kind = op.type
    if kind in _LOOPS:
        body = lower(_functions(op, "body")[0])
        parallel = int(op.get_attr("parallel_iterations"))
        turns = _num_turns(op)
        return Operation(
            kind, "loop", inputs, outputs, programs=(body,), turns=turns, parallel=parallel, after=after, scope=scope
        )
    if kind in _BRANCHES:
        names = ("then_branch", "else_branch") if kind.endswith("If") else ("branches",)
        branches = tuple(lower(graph) for name in names for graph in _functions(op, name))
        return Operation(kind, "branch", inputs, outputs, programs=branches, after=after, scope=scope)
    if kind in _LISTS:
        return Operation(kind, "list", inputs, outputs, after=after, scope=scope)
    if kind in _PUSHES:
        return Operation(kind, "push", (inputs[0], inputs[-1]), outputs, after=after, scope=scope)
    if kind == "TensorListPopBack":
        return Operation(kind, "pop", inputs[:1], outputs, after=after, scope=scope)
    if kind in _ALIASES or kind == "IdentityN":
        return Operation(kind, "alias", inputs, outputs, after=after, scope=scope)
    if kind in _NOTHING or all(tensor.dtype == tf.resource for tensor in op.outputs):
        return Operation(kind, "nothing", inputs, outputs, after=after, scope=scope)
    sizes = tuple(_size(op, tensor) for tensor in op.outputs)
    return Operation(
        kind, "make", inputs, outputs, sizes, kind in _IN_PLACE, after=after, scratch=scratch_bytes(op), scope=scope
    )


def _size(op: Any, tensor: Any) -> int | Bound:
    """A tensor's bytes, or what bounds them.

    Raises:
        UnknownSizeError: Nothing does.
    """
    if tensor.dtype == tf.variant:
        return Bound("largest")
    known = known_bytes(tensor)
    if known is not None:
        # oneDNN's pooling keeps a byte beside each output for its gradient: where in the window it came from.
        return known + math.prod(tensor.shape) if op.type == "MaxPool" and heap.has_onednn() else known
    narrowest = min((_width(source.dtype) for source in op.inputs), default=1)
    if op.type in _BOUNDED:
        return Bound("largest", _width(tensor.dtype) / narrowest)
    if op.type in _JOINED:
        return Bound("all")
    if op.type == "Where":
        return Bound("largest", _width(tensor.dtype) * len(op.inputs[0].shape) / narrowest)
    raise UnknownSizeError(f"the shape of {op.type} {tensor.name}")


def _width(dtype: Any) -> int:
    # Strings, handles and lists: a reference.
    return 8 if dtype in (tf.string, tf.resource, tf.variant) else int(dtype.size)


def _needed(graph: Any) -> list[Any]:
    """The operations that the outputs or an effect needs: in the order of their creation, each after what it reads.

    Gradients add inputs to loops that were created before them, so the order of creation alone is not enough.
    """
    needed = {tensor.op for tensor in graph.outputs} | set(graph.control_outputs)
    waiting = list(needed)
    while waiting:
        for source in _sources(waiting.pop()):
            if source not in needed:
                needed.add(source)
                waiting.append(source)
    ordered: dict[Any, None] = {}
    for op in graph.get_operations():
        stack = [op] if op in needed else []
        while stack:
            missing = [source for source in _sources(stack[-1]) if source not in ordered]
            if missing and stack[-1] not in ordered:
                stack += missing
            else:
                ordered[stack.pop()] = None
    return list(ordered)


def _sources(op: Any) -> list[Any]:
    return [tensor.op for tensor in op.inputs] + list(op.control_inputs)


def _functions(op: Any, attribute: str) -> list[Any]:
    """The graphs of the functions that an operation calls."""
    value = op.get_attr(attribute)
    return [_find(op.graph, function.name) for function in (value if isinstance(value, list) else [value])]


def _find(graph: Any, name: str) -> Any:
    """The graph of a function, which this graph or one around it knows."""
    while graph is not None:
        # Not public: TensorFlow's own gradient code finds the function of a call in this way.
        found = graph._get_function(name)
        if found is not None:
            return found.graph
        graph = getattr(graph, "outer_graph", None)
    raise UnknownSizeError(f"the function {name} is not in the graph")


def _num_turns(op: Any) -> int | None:
    """How often a loop's body runs at most; None where nothing says so.

    A list that a gradient accumulates in gets one element a turn, so its greatest length is a bound; a list of the user's
    (``TensorListReserve``) may be shorter than the loop. The condition compares a counter with its end.
    """
    found = []
    for tensor in op.inputs:
        if tensor.op.type == "EmptyTensorList":
            size = tf.get_static_value(tensor.op.inputs[1])
            if size is not None and int(size) >= 0:
                found.append(int(size))
    condition = _functions(op, "cond")[0]
    for compare in condition.get_operations():
        if compare.type == "Less":
            low, high = (_outer_value(condition, op, tensor) for tensor in compare.inputs)
            if low is not None and high is not None:
                found.append(max(0, high - low))
    return min(found, default=None)


def _outer_value(condition: Any, op: Any, tensor: Any) -> int | None:
    """A number that a loop's condition compares: a constant, a loop variable's first value, or another loop's turns."""
    for argument, source in zip(condition.inputs, op.inputs, strict=True):
        if argument is tensor:
            tensor = source
            break
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    if not tensor.dtype.is_integer:
        return None
    # A gradient's loop runs as often as the forward loop counted.
    if tensor.op.type in _LOOPS:
        return _num_turns(tensor.op)
    value = tf.get_static_value(tensor)
    return None if value is None or value.size != 1 else int(value)
