"""TensorFlow: parts run one after the other in a ``tf.while_loop`` inside the train step, one optimizer update a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from memfit.backends import host_allocator, keras_seam
from memfit.backends.on_tensorflow import custom_gradients, heap
from memfit.backends.shares import Shares
from memfit.records import Split


def attach(model: Any, split: Split | None) -> Callable[[], None]:
    """Puts the micro-batched train step on the model; returns the function that takes it off.

    With None the step stays Keras' own; what a step takes is analysed for the C library's heap as it is set here either way.
    """
    previous = model.train_function
    rematerialized = keras_seam.remat_of(model) is not None
    if split is not None:
        keras_seam.set_attribute(model, "train_step", train_step(model, split))
    if split is not None or rematerialized:
        model.make_train_function(force=True)
    on_heap = not tf.config.get_visible_devices("GPU") and heap.of_this_process() is heap.Heap
    restore_heap = host_allocator.map_large_blocks() if on_heap else None

    def detach() -> None:
        if restore_heap is not None:
            restore_heap()
        if split is not None:
            vars(model).pop("train_step", None)
        if split is not None or rematerialized:
            model.train_function = previous

    return detach


def gradients(model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
    """Loss and gradients of one batch in training mode; the caller keeps and restores the model's state.

    Operation by operation, the tape keeps what every one of them gave: two texts of a GPT left 222 MiB with the process, 105
    traced. Tracing takes seconds, so it is done where that matters.
    """
    batch = keras_seam.map_leaves(tf.convert_to_tensor, batch)
    if split is None:

        def whole(x: Any, y: Any, sample_weight: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape() as tape:
                y_pred = keras_seam.forward(model, x, training=True)
                loss = tf.reduce_sum(keras_seam.compute_loss(model, x, y, y_pred, sample_weight))
            return loss, [_dense(gradient) for gradient in tape.gradient(loss, model.trainable_weights)]

        loss, grads = _program(model, "whole", whole)(*batch)
    else:
        loss, grads = _in_parts(model, split, batch)
    return float(loss), [None if gradient is None else gradient.numpy() for gradient in grads]


def _in_parts(model: Any, split: Split, batch: Any) -> tuple[Any, list[Any]]:
    step = _Step(model, split)
    num_samples = int(keras_seam.flatten(batch)[0].shape[0])
    starts = range(0, num_samples, split.micro_batch_size)
    parts = [_slice(batch, start, min(split.micro_batch_size, num_samples - start)) for start in starts]
    counts = None
    if step.shares.may_count:
        columns = zip(*(step.counts(part) for part in parts), strict=True)
        counts = [None if column[0] is None else sum(column) for column in columns]

    def one(part: Any, fraction: Any, counts: Any) -> tuple[Any, list[Any]]:
        share, grads, _ = step.part(part, fraction, counts, scale=False)
        return share.total, [_dense(gradient) for gradient in grads]

    program = _program(model, split, one)
    loss: Any = 0.0
    grads: list[Any] = [None] * len(model.trainable_weights)
    for part in parts:
        fraction = tf.constant(keras_seam.flatten(part)[0].shape[0] / num_samples, keras.config.floatx())
        total, part_grads = program(part, fraction, counts)
        loss += total
        grads = [b if a is None else a if b is None else a + b for a, b in zip(grads, part_grads, strict=True)]
    return loss, grads


def _program(model: Any, name: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function traced, where tests of the model are to be; a program of the same name is traced once."""
    if not keras_seam.tests_are_traced(model):
        return function
    program = keras_seam.kept_programs(model).setdefault(name, tf.function(function, autograph=False))

    def call(*arguments: Any) -> Any:
        with custom_gradients.dropped():
            return program(*arguments)

    return call


def train_step(model: Any, split: Split) -> Callable[[Any], Any]:
    """The function that stands in for ``model.train_step``."""
    step = _Step(model, split)
    return lambda data: step(keras.utils.unpack_x_y_sample_weight(data))


class _Sums(NamedTuple):
    """What a part gives, and what parts add up to; logs are those of the last."""

    total: Any
    outputs: list[Any]
    gradients: list[Any]
    logs: Any


class _Step:
    """The micro-batched train step of one model.

    All parts run in one loop, so that the graph holds the model once: graph, optimised copies and kernels are most of what a
    step in small parts takes. The loop must know beforehand what it carries: which gradients there are, which are sparse, what
    the user's ``compute_metrics`` returns. A part tells that is traced into a graph of its own, which is thrown away. XLA must
    know sizes while it compiles: for it the first part, of 1 to ``micro_batch_size`` samples, goes before the loop.
    """

    def __init__(self, model: Any, split: Split) -> None:
        self._model = model
        self._size = split.micro_batch_size
        self._own_metrics = keras_seam.overrides(model, "compute_metrics")
        self.shares = Shares(model, split)

    def __call__(self, batch: Any) -> Any:
        model = self._model
        parts = _Parts(batch, self._size)
        counts = self._total_counts(parts)

        def run(part: Any) -> _Sums:
            return self._tracked_part(part, parts.num_samples, counts)

        found = run(batch) if parts.are_one else self._looped(parts, run, *self._begin(parts, run))
        model.optimizer.apply_gradients(zip(found.gradients, model.trainable_weights, strict=True))
        known = parts.num_samples if isinstance(parts.num_samples, int) else None
        self.shares.finish(found.total, found.outputs, parts.num_samples, known)
        return {**found.logs, **model.get_metrics_result()}

    def part(self, part: Any, fraction: Any, counts: Any, *, scale: bool = True) -> tuple[Any, list[Any], Any]:
        """Share of the loss, gradients (None where a weight is unused) and outputs of one part."""
        model = self._model
        with tf.GradientTape() as tape:
            y_pred = keras_seam.forward(model, part[0], training=True)
            share = self.shares.share(part, y_pred, losses=model.losses, fraction=fraction, counts=counts)
            loss = model.optimizer.scale_loss(share.total) if scale else share.total
        return share, tape.gradient(loss, model.trainable_weights), y_pred

    def counts(self, part: Any) -> list[Any]:
        """The part's data-dependent denominators; all else of the forward pass is pruned from the graph."""
        x, y, sample_weight = part
        # A stateless scope keeps seeds and moving averages where the real pass will find them.
        with keras.StatelessScope():
            y_pred = keras_seam.forward(self._model, x, training=False)
            return self.shares.counts(x, y, y_pred, sample_weight)

    def _tracked_part(self, part: Any, num_samples: Any, counts: Any) -> _Sums:
        """One part's loss and gradients; its predictions go into the metrics."""
        floatx = keras.config.floatx()
        fraction = tf.cast(_num_samples(part), floatx) / tf.cast(num_samples, floatx)
        share, gradients, y_pred = self.part(part, fraction, counts)
        x, y, sample_weight = part
        logs = self._model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return _Sums(share.total, share.outputs, list(gradients), logs if self._own_metrics else {})

    def _total_counts(self, parts: _Parts) -> list[Any] | None:
        """The whole batch's denominators; None where none depends on the data."""
        if not self.shares.may_count:
            return None
        there: list[bool] = []

        def run(part: Any) -> _Sums:
            counts = self.counts(part)
            there[:] = [count is not None for count in counts]
            return _Sums(tf.constant(0.0), [count for count in counts if count is not None], [], {})

        begin, first_index = (run(parts.batch), 0) if parts.are_one else self._begin(parts, run)
        if not any(there):
            return None
        found = begin if parts.are_one else self._looped(parts, run, begin, first_index)
        counted = iter(found.outputs)
        return [next(counted) if is_there else None for is_there in there]

    def _begin(self, parts: _Parts, run: Callable[[Any], _Sums]) -> tuple[_Sums, int]:
        """What the loop begins with, and its first index: zeros and 0, or what the first part gives and 1."""
        if not self._model.jit_compile:
            like = _traced_apart(lambda: run(parts.at(0)))
            # Of what is carried, only the user's own logs may have shapes that the graph does not know.
            if all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(like.logs)):
                return self._zeros(like), 0
        return run(parts.first), 1

    def _zeros(self, like: _Sums) -> _Sums:
        weights = self._model.trainable_weights
        gradients = [
            gradient if gradient is None or _is_sparse(gradient) else tf.zeros(weights[i].shape, gradient.dtype)
            for i, gradient in enumerate(like.gradients)
        ]
        total, outputs, logs = tf.nest.map_structure(_zeros, (like.total, like.outputs, like.logs))
        return _Sums(total, outputs, gradients, logs)

    def _looped(self, parts: _Parts, run: Callable[[Any], _Sums], begin: _Sums, first_index: int) -> _Sums:
        """The parts from an index on, added to what there is."""
        grads = list(begin.gradients)
        dense = [i for i, gradient in enumerate(grads) if gradient is not None and not _is_sparse(gradient)]
        sparse = [i for i, gradient in enumerate(grads) if _is_sparse(gradient)]
        arrays = [_SliceArrays(grads[i], parts, first_index) for i in sparse]

        def body(index: Any, total: Any, outputs: Any, sums: Any, slices: Any, _logs: Any) -> tuple[Any, ...]:
            part = run(parts.at(index) if first_index == 0 else parts.full(index))
            sums = [accumulated + part.gradients[i] for accumulated, i in zip(sums, dense, strict=True)]
            slices = [
                made.written(pair, index, part.gradients[i])
                for made, pair, i in zip(arrays, slices, sparse, strict=True)
            ]
            outputs = [a + b for a, b in zip(outputs, part.outputs, strict=True)]
            return index + 1, total + part.total, outputs, sums, slices, part.logs

        index = tf.constant(0) if first_index == 0 else _one_after(begin)
        carried = (begin.total, begin.outputs, [grads[i] for i in dense], [a.pair for a in arrays], begin.logs)
        _, total, outputs, sums, slices, logs = tf.while_loop(
            lambda index, *_: index < parts.number, body, (index, *carried), parallel_iterations=1
        )
        for i, accumulated in zip(dense, sums, strict=True):
            grads[i] = accumulated
        for i, pair, made in zip(sparse, slices, arrays, strict=True):
            grads[i] = made.joined(pair, self._model.trainable_weights[i].shape)
        return _Sums(total, outputs, grads, logs)


class _Parts:
    """How a batch is cut: the first part takes what is left over, the others are full.

    Attributes:
        batch: The whole of it.
        num_samples: An ``int`` where the graph knows it, else a scalar tensor.
        number: Of parts, as ``num_samples``.
    """

    def __init__(self, batch: Any, size: int) -> None:
        self.batch = batch
        self.num_samples = _num_samples(batch)
        self.number = (self.num_samples + size - 1) // size
        self._size = size

    @property
    def are_one(self) -> bool:
        """Whether the graph knows that the batch is one part."""
        return isinstance(self.number, int) and self.number == 1

    @property
    def first(self) -> Any:
        """The first part."""
        return _slice(self.batch, 0, self.num_samples - (self.number - 1) * self._size)

    def full(self, index: Any) -> Any:
        """One of the parts after the first."""
        return _slice(self.batch, self.num_samples - (self.number - index) * self._size, self._size)

    def as_full(self, entries: int) -> int | None:
        """What a full part has of something of which the first has so many; None where the graph does not know that."""
        if not isinstance(self.num_samples, int):
            return None
        return entries * self._size // (self.num_samples - (self.number - 1) * self._size)

    def at(self, index: Any) -> Any:
        """Any part; the graph knows its size where all are full."""
        if isinstance(self.num_samples, int) and self.num_samples % self._size == 0:
            return self.full(index)
        end = self.num_samples - (self.number - 1 - index) * self._size
        start = tf.maximum(0, end - self._size)
        return _slice(self.batch, start, end - start)


class _SliceArrays:
    """The sparse gradients of one embedding, collected over the parts.

    They are joined, not added: an optimizer that squares a gradient squares each slice, in the plain step too.

    Args:
        like: The gradient of the first part.
        parts: The parts.
        first_index: Of the first part that is collected; those before it are in ``like``.
    """

    def __init__(self, like: tf.IndexedSlices | _Slices, parts: _Parts, first_index: int) -> None:
        self._first_index = first_index
        self._before = like if first_index else None
        entries = like.values.shape[0]
        if first_index and entries is not None:
            entries = parts.as_full(entries)
        self.pair = tuple(
            tf.TensorArray(
                slices.dtype,
                parts.number - first_index,
                infer_shape=entries is not None,
                element_shape=[entries, *slices.shape[1:]],
            )
            for slices in (like.values, like.indices)
        )

    def written(self, pair: Any, index: Any, gradient: tf.IndexedSlices) -> Any:
        values, indices = pair
        index = index - self._first_index
        return values.write(index, gradient.values), indices.write(index, gradient.indices)

    def joined(self, pair: Any, shape: Any) -> tf.IndexedSlices:
        """All that was collected, as the gradient of a weight of this shape."""
        values, indices = (array.concat() for array in pair)
        if self._before is not None:
            values, indices = tf.concat([self._before.values, values], 0), tf.concat([self._before.indices, indices], 0)
        return tf.IndexedSlices(values, indices, tf.constant(list(shape)))


def _is_sparse(gradient: Any) -> bool:
    return isinstance(gradient, (tf.IndexedSlices, _Slices))


class _Slices(NamedTuple):
    """What is known of a sparse gradient before there is one."""

    values: tf.TensorSpec
    indices: tf.TensorSpec


def _traced_apart(run: Callable[[], _Sums]) -> _Sums:
    """What a function gives, described, from a graph of its own that is thrown away."""
    with custom_gradients.dropped(), tf.__internal__.FuncGraph("apart").as_default():
        found = run()
        total, outputs, logs = tf.nest.map_structure(_spec, (found.total, found.outputs, found.logs))
        described = _Sums(total, outputs, [_gradient_spec(gradient) for gradient in found.gradients], logs)
        del found  # holds the graph
    return described


def _gradient_spec(gradient: Any) -> Any:
    if _is_sparse(gradient):
        return _Slices(_spec(gradient.values), _spec(gradient.indices))
    return None if gradient is None else _spec(gradient)


def _spec(leaf: Any) -> tf.TensorSpec:
    tensor = tf.convert_to_tensor(leaf)
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros(spec.shape, spec.dtype)


def _one_after(results: Any) -> tf.Tensor:
    """The index 1, there once the results of the first part are.

    TensorFlow takes a loop apart into its variables: what an iteration computes from the index and the batch alone would
    start beside the first part, and both would hold their activations.
    """
    tensors = [leaf for leaf in tf.nest.flatten(results, expand_composites=True) if leaf is not None]
    with tf.control_dependencies(tensors):
        return tf.identity(tf.constant(1))


def _num_samples(batch: Any) -> Any:
    """The batch's number of samples: an ``int`` where the graph knows it, else a scalar tensor."""
    first = keras_seam.flatten(batch)[0]
    return first.shape[0] if first.shape[0] is not None else tf.shape(first)[0]


def _slice(batch: Any, start: Any, size: Any) -> Any:
    """``size`` samples of every leaf from ``start`` on."""

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, tf.SparseTensor):
            rest = tf.shape(leaf, out_type=tf.int64)[1:]
            begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(rest)], 0)
            return tf.sparse.slice(leaf, begin, tf.concat([[tf.cast(size, tf.int64)], rest], 0))
        if isinstance(leaf, tf.RaggedTensor):
            return leaf[start : start + size]
        rank = len(leaf.shape)
        part = tf.slice(leaf, [start] + [0] * (rank - 1), [size] + [-1] * (rank - 1))
        part.set_shape([size if isinstance(size, int) else None, *leaf.shape[1:]])
        return part

    return keras_seam.map_leaves(cut, batch)


def _dense(gradient: Any) -> Any:
    return tf.convert_to_tensor(gradient) if _is_sparse(gradient) else gradient
