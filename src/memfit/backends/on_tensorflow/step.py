"""TensorFlow: parts run one after the other in a ``tf.while_loop`` inside the train step, one optimizer update a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from memfit.backends import host_allocator, keras_seam
from memfit.backends.on_tensorflow import heap
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
    """Loss and gradients of one batch in training mode; the caller keeps and restores the model's state."""
    batch = keras_seam.map_leaves(tf.convert_to_tensor, batch)
    if split is None:
        x, y, sample_weight = batch
        with tf.GradientTape() as tape:
            y_pred = keras_seam.forward(model, x, training=True)
            loss = tf.reduce_sum(keras_seam.compute_loss(model, x, y, y_pred, sample_weight))
        grads = [_dense(gradient) for gradient in tape.gradient(loss, model.trainable_weights)]
    else:
        loss, grads = _eager_split(model, split, batch)
    return float(loss), [None if gradient is None else gradient.numpy() for gradient in grads]


def _eager_split(model: Any, split: Split, batch: Any) -> tuple[Any, list[Any]]:
    step = _Step(model, split)
    num_samples = int(keras_seam.flatten(batch)[0].shape[0])
    starts = range(0, num_samples, split.micro_batch_size)
    parts = [_slice(batch, start, min(split.micro_batch_size, num_samples - start)) for start in starts]
    counts = None
    if step.shares.may_count:
        columns = zip(*(step.counts(part) for part in parts), strict=True)
        counts = [None if column[0] is None else sum(column) for column in columns]
    loss: Any = 0.0
    grads: list[Any] = [None] * len(model.trainable_weights)
    for part in parts:
        fraction = keras_seam.flatten(part)[0].shape[0] / num_samples
        share, part_grads, _ = step.part(part, fraction, counts, scale=False)
        part_grads = [_dense(gradient) for gradient in part_grads]
        loss += share.total
        grads = [b if a is None else a if b is None else a + b for a, b in zip(grads, part_grads, strict=True)]
    return loss, grads


def train_step(model: Any, split: Split) -> Callable[[Any], Any]:
    """The function that stands in for ``model.train_step``."""
    step = _Step(model, split)
    return lambda data: step(keras.utils.unpack_x_y_sample_weight(data))


class _Step:
    """The micro-batched train step of one model.

    The first part, of 1 to ``micro_batch_size`` samples, runs in straight-line code; the others, all full, follow in the
    loop. So a short batch needs no branch, and the first part tells the loop what it carries: which gradients exist, which
    are sparse, what the user's ``compute_metrics`` returns.
    """

    def __init__(self, model: Any, split: Split) -> None:
        self._model = model
        self._size = split.micro_batch_size
        self._own_metrics = keras_seam.overrides(model, "compute_metrics")
        self.shares = Shares(model, split)

    def __call__(self, batch: Any) -> Any:
        model = self._model
        num_samples = _num_samples(batch)
        counts = self._total_counts(batch)
        total, outputs, grads, logs = self._gradients(batch, counts)
        model.optimizer.apply_gradients(zip(grads, model.trainable_weights, strict=True))
        self.shares.finish(total, outputs, num_samples, num_samples if isinstance(num_samples, int) else None)
        return {**logs, **model.get_metrics_result()}

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

    def _gradients(self, batch: Any, counts: Any) -> tuple[Any, list[Any], list[Any], Any]:
        """Loss, output losses and gradients of the whole batch, and the logs of its last part."""
        num_samples = _num_samples(batch)
        first, num_rest = self._first(batch)
        total, outputs, grads, logs = self._tracked_part(first, num_samples, counts)
        if num_rest is None:
            return total, outputs, grads, logs
        dense = [i for i, gradient in enumerate(grads) if tf.is_tensor(gradient) and not _is_sparse(gradient)]
        sparse = [i for i, gradient in enumerate(grads) if _is_sparse(gradient)]
        arrays = [_SliceArrays(grads[i], _num_samples(first), self._size, num_rest) for i in sparse]

        def body(index: Any, total: Any, outputs: Any, sums: Any, slices: Any, _logs: Any) -> tuple[Any, ...]:
            part = self._rest(batch, index)
            part_total, part_outputs, part_grads, logs = self._tracked_part(part, num_samples, counts)
            sums = [accumulated + part_grads[i] for accumulated, i in zip(sums, dense, strict=True)]
            slices = [_SliceArrays.write(pair, index, part_grads[i]) for pair, i in zip(slices, sparse, strict=True)]
            outputs = [a + b for a, b in zip(outputs, part_outputs, strict=True)]
            return index + 1, total + part_total, outputs, sums, slices, logs

        start = (_zero_after(grads), total, outputs, [grads[i] for i in dense], [a.pair for a in arrays], logs)
        _, total, outputs, sums, slices, logs = tf.while_loop(
            lambda index, *_: index < num_rest, body, start, parallel_iterations=1
        )
        for i, accumulated in zip(dense, sums, strict=True):
            grads[i] = accumulated
        for i, pair in zip(sparse, slices, strict=True):
            grads[i] = _SliceArrays.joined(grads[i], pair)
        return total, outputs, grads, logs

    def _tracked_part(self, part: Any, num_samples: Any, counts: Any) -> tuple[Any, list[Any], list[Any], Any]:
        """One part's gradients; its predictions go into the metrics."""
        floatx = keras.config.floatx()
        fraction = tf.cast(_num_samples(part), floatx) / tf.cast(num_samples, floatx)
        share, grads, y_pred = self.part(part, fraction, counts)
        x, y, sample_weight = part
        logs = self._model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return share.total, share.outputs, list(grads), logs if self._own_metrics else {}

    def _total_counts(self, batch: Any) -> list[Any] | None:
        if not self.shares.may_count:
            return None
        first, num_rest = self._first(batch)
        counts = self.counts(first)
        counted = [i for i, count in enumerate(counts) if count is not None]
        if not counted:
            return None
        if num_rest is not None:

            def body(index: Any, totals: Any) -> tuple[Any, Any]:
                part = self.counts(self._rest(batch, index))
                return index + 1, [total + part[i] for total, i in zip(totals, counted, strict=True)]

            start = (_zero_after(counts), [counts[i] for i in counted])
            _, totals = tf.while_loop(lambda index, _: index < num_rest, body, start, parallel_iterations=1)
            for i, total in zip(counted, totals, strict=True):
                counts[i] = total
        return counts

    def _first(self, batch: Any) -> tuple[Any, Any]:
        """The first part, and how many full parts follow: None where the graph knows that none does."""
        num_samples = _num_samples(batch)
        num_rest = (num_samples - 1) // self._size
        if isinstance(num_rest, int) and num_rest == 0:
            return batch, None
        return _slice(batch, 0, num_samples - num_rest * self._size), num_rest

    def _rest(self, batch: Any, index: Any) -> Any:
        """The full part ``index`` of those that follow the first."""
        num_samples = _num_samples(batch)
        start = num_samples - ((num_samples - 1) // self._size - index) * self._size
        return _slice(batch, start, self._size)


class _SliceArrays:
    """The sparse gradients of one embedding, collected over the parts.

    They are joined, not added: an optimizer that squares a gradient squares each slice, in the plain step too.
    """

    def __init__(self, first: tf.IndexedSlices, first_size: Any, size: int, num_parts: Any) -> None:
        entries = first.values.shape[0]
        known = entries is not None and isinstance(first_size, int)
        entries = entries * size // first_size if known else None
        self.pair = tuple(
            tf.TensorArray(part.dtype, num_parts, infer_shape=known, element_shape=[entries, *part.shape[1:]])
            for part in (first.values, first.indices)
        )

    @staticmethod
    def write(pair: Any, index: Any, gradient: tf.IndexedSlices) -> Any:
        values, indices = pair
        return values.write(index, gradient.values), indices.write(index, gradient.indices)

    @staticmethod
    def joined(first: tf.IndexedSlices, pair: Any) -> tf.IndexedSlices:
        values, indices = (array.concat() for array in pair)
        return tf.IndexedSlices(
            tf.concat([first.values, values], 0), tf.concat([first.indices, indices], 0), first.dense_shape
        )


def _is_sparse(gradient: Any) -> bool:
    return isinstance(gradient, tf.IndexedSlices)


def _zero_after(results: Any) -> tf.Tensor:
    """The loop's first index, there once the results of the first part are.

    TensorFlow takes a loop apart into its variables: what an iteration computes from the index and the batch alone would
    start beside the first part, and both would hold their activations.
    """
    tensors = [leaf for leaf in tf.nest.flatten(results, expand_composites=True) if leaf is not None]
    with tf.control_dependencies(tensors):
        return tf.identity(tf.constant(0))


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
