"""What the data of a run feeds the step: shapes and dtypes of a batch, and a few real samples."""

from __future__ import annotations

import dataclasses
import itertools
import types
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_data, keras_order, keras_seam, pipelines, random_state
from memfit.backends.array_feed import ArrayFeed
from memfit.backends.pipeline_records import Change
from memfit.errors import ArgumentError
from memfit.records import TensorSpec


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a run.

    Attributes:
        spec: ``(x, y, sample_weight)`` of TensorSpec at the full batch size; None where the data does not tell.
        batch_size: Samples of a full batch.
        num_samples: Samples of the data set, where it knows.
        sample: Called with n, gives ``(x, y, sample_weight)`` of numpy arrays: the first n samples at most.
        queued: Batches in flight beside the one in the step: being gathered, prefetched, waiting in a queue.
        reading: Bytes of the host that making batches takes beside them, where the data says so.
        rest: Samples of an epoch's last batch where it is known to be a smaller one; else 0.
    """

    spec: Any
    batch_size: int | None
    num_samples: int | None
    sample: Callable[[int], Any]
    queued: int = 1
    reading: int = 0
    rest: int = 0


_PREFETCHED = 3
"""Batches in flight of a pipeline that says nothing about them."""


def described(arguments: dict[str, Any]) -> tuple[Batches, dict[str, Any]]:
    """What the arguments of ``fit`` feed, and the arguments to fit with: a generator that was looked at starts anew.

    Raises:
        ArgumentError: There is no data, or x, y and weights are of different length.
    """
    x, y, sample_weight = (arguments.get(name) for name in ("x", "y", "sample_weight"))
    if x is None:
        raise ArgumentError("fit needs data. Received: x=None. Pass arrays, a dataset or a generator as `x`.")
    if keras_data.are_arrays((x, y, sample_weight)):
        return _arrays(arguments), arguments
    if hasattr(x, "element_spec"):
        return dataclasses.replace(_tf_dataset(x, arguments), queued=_PREFETCHED), arguments
    if isinstance(x, keras.utils.PyDataset):
        # With one thread Keras has no queue, but that of TensorFlow; memfit's own data sets have one of their own.
        has_queue = keras_order.is_filled_ahead(x) or hasattr(x, "batch_spec")
        queued = x.max_queue_size + x.workers if has_queue else _PREFETCHED
        reading = int(getattr(x, "reading_bytes", 0))
        return dataclasses.replace(_py_dataset(x, arguments), queued=queued, reading=reading), arguments
    if isinstance(x, types.GeneratorType):
        return _generator(x, arguments)
    return dataclasses.replace(_iterable(x, arguments), queued=_queued(x)), arguments


def spec_of(batch: Any) -> Any | None:
    """``(x, y, sample_weight)`` of TensorSpec of a batch to be trained on; None where its shapes are not plain."""
    parts = keras.utils.unpack_x_y_sample_weight(batch)
    try:
        return tuple(keras_seam.map_leaves(lambda leaf: _spec_of(leaf, int(leaf.shape[0])), part) for part in parts)
    except (AttributeError, TypeError, ValueError, IndexError):
        return None


def may_change_shape(model: Any, data: Any) -> bool:
    """Whether a batch may come that is of another shape than the first: arrays and memfit's own data sets have one."""
    if keras_data.are_arrays(data) or isinstance(data, ArrayFeed) or hasattr(data, "batch_spec"):
        return False
    inputs = getattr(model, "inputs", None)
    return not inputs or any(None in tuple(tensor.shape)[1:] for tensor in inputs)


def _queued(iterable: Any) -> int:
    """A torch DataLoader says how many batches its workers hold ready; other iterables say nothing."""
    workers, each = getattr(iterable, "num_workers", None), getattr(iterable, "prefetch_factor", None)
    return max(1, workers * (each or 0)) if isinstance(workers, int) else _PREFETCHED


def _arrays(arguments: dict[str, Any]) -> Batches:
    structure = tuple(arguments.get(name) for name in ("x", "y", "sample_weight"))
    num_samples = _common_length(structure)
    batch_size = arguments.get("batch_size")
    if batch_size is None:
        steps = arguments.get("steps_per_epoch")
        batch_size = -(-num_samples // steps) if steps else 32
    size = min(batch_size, num_samples)
    weighted = arguments.get("class_weight") is not None and structure[2] is None
    spec = [keras_seam.map_leaves(lambda leaf: _spec_of(leaf, size), part) for part in structure]
    if weighted:
        spec[2] = TensorSpec((size,), keras.config.floatx())

    def sample(count: int) -> Any:
        return tuple(keras_seam.map_leaves(_as_numpy, keras_seam.rows(part, slice(0, count))) for part in structure)

    trained = int(num_samples * (1.0 - (arguments.get("validation_split") or 0.0)))
    return Batches(tuple(spec), size, num_samples, sample, rest=_rest(trained, size))


def _rest(num_samples: int, size: int) -> int:
    return num_samples % size if num_samples > size else 0


def _common_length(structure: tuple[Any, ...]) -> int:
    lengths = {
        name: sorted({int(leaf.shape[0]) for leaf in keras_seam.flatten(part)})
        for name, part in zip(("x", "y", "sample_weight"), structure, strict=True)
        if part is not None
    }
    known = sorted(set(itertools.chain(*lengths.values())))
    if len(known) > 1:
        shown = ", ".join(f"{name}: {' and '.join(map(str, sizes))}" for name, sizes in lengths.items())
        raise ArgumentError(
            f"x, y and sample_weight must have the same number of samples. Received: {shown}. "
            "Cut or complete them so that sample i of one belongs to sample i of the others."
        )
    if not known or known[0] == 0:
        raise ArgumentError("The data is empty. Received: arrays with 0 samples. Pass at least one sample.")
    return known[0]


def _tf_dataset(dataset: Any, arguments: dict[str, Any]) -> Batches:
    if int(dataset.cardinality()) == 0:
        raise ArgumentError("The data is empty. Received: a tf.data.Dataset of 0 batches. Check the files and filters.")
    spec = keras.utils.unpack_x_y_sample_weight(dataset.element_spec)
    leaves = keras_seam.flatten(spec)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") and leaf.shape.rank for leaf in leaves):
        return Batches(None, None, None, _first_of(dataset))
    shapes = [leaf.shape.as_list() for leaf in leaves]
    size = next((shape[0] for shape in shapes if shape[0]), None) or _declared_batch_size(dataset)
    if size is None or any(dimension is None for shape in shapes for dimension in shape[1:]):
        return _from_first(_first_of(dataset), arguments)
    full = keras_seam.map_leaves(lambda leaf: TensorSpec((size, *leaf.shape.as_list()[1:]), leaf.dtype.name), spec)
    return Batches(_with_class_weight(full, arguments), size, None, _first_of(dataset))


def _declared_batch_size(dataset: Any) -> int | None:
    """The batch size that a ``batch`` stage of the pipeline names, past stages that keep batches whole."""
    while dataset is not None:
        size = getattr(dataset, "_batch_size", None)
        if size is not None:
            return int(size)
        dataset = getattr(dataset, "_input_dataset", None)
    return None


def _py_dataset(dataset: Any, arguments: dict[str, Any]) -> Batches:
    if dataset.num_batches == 0:
        raise ArgumentError("The data is empty. Received: a PyDataset of 0 batches. Check what it was made from.")

    def sample(count: int) -> Any:
        with random_state.preserved(owner=dataset):
            return _cut(keras.utils.unpack_x_y_sample_weight(dataset[0]), count)

    known = getattr(dataset, "batch_spec", None)  # memfit.data knows its shapes without reading
    if known is None:
        return _from_first(sample, arguments)
    spec = _with_class_weight(keras.utils.unpack_x_y_sample_weight(known), arguments)
    size = keras_seam.flatten(spec)[0].shape[0]
    return Batches(spec, size, None, sample, rest=_rest(dataset.num_samples, size))


_looked_at: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""The first batch of generators that were looked at and not trained on yet: a plan that was refused must not cost a batch."""


def _generator(generator: Any, arguments: dict[str, Any]) -> tuple[Batches, dict[str, Any]]:
    try:
        first = _looked_at[generator] if generator in _looked_at else next(generator)
    except StopIteration:
        raise ArgumentError("The data is empty. Received: a generator that yields nothing.") from None
    _looked_at[generator] = first

    def again() -> Any:
        if generator in _looked_at:
            yield _looked_at.pop(generator)
        yield from generator

    def sample(count: int) -> Any:
        return _cut(keras.utils.unpack_x_y_sample_weight(first), count)

    return _from_first(sample, arguments), {**arguments, "x": again()}


def _iterable(data: Any, arguments: dict[str, Any]) -> Batches:
    if isinstance(data, ArrayFeed) or not hasattr(data, "__iter__"):
        return Batches(None, None, None, lambda count: None)
    return _from_first(_first_of(data), arguments)


def _first_of(data: Any) -> Callable[[int], Any]:
    def sample(count: int) -> Any:
        with random_state.preserved(owner=data):
            first = next(iter(_unshuffled(data)), None)
        if first is None:
            raise ArgumentError(f"The data is empty. Received: a {type(data).__name__} of 0 batches.")
        return _cut(keras.utils.unpack_x_y_sample_weight(first), count)

    return sample


def _unshuffled(data: Any) -> Any:
    """A pipeline of a framework without its shuffles, which would draw their next order; other data as it is."""
    tools = pipelines.tools_for(data)
    if tools is None:
        return data
    stages = enumerate(tools.stages(data))
    drops = tuple(Change(index, "drop") for index, stage in stages if stage.kind == "shuffle" and stage.changeable)
    try:
        return tools.rebuilt(data, drops, ram_budget=None) if drops else data
    except ValueError:  # then its order is moved on
        return data


def _from_first(sample: Callable[[int], Any], arguments: dict[str, Any]) -> Batches:
    first = sample(2**62)
    leaves = keras_seam.flatten(first)
    if not leaves or not all(isinstance(leaf, np.ndarray) and leaf.ndim for leaf in leaves):
        return Batches(None, None, None, sample)
    spec = tuple(keras_seam.map_leaves(lambda leaf: TensorSpec(leaf.shape, str(leaf.dtype)), part) for part in first)
    return Batches(_with_class_weight(spec, arguments), leaves[0].shape[0], None, sample)


def _with_class_weight(spec: Any, arguments: dict[str, Any]) -> Any:
    x, y, sample_weight = spec
    if arguments.get("class_weight") is not None and sample_weight is None:
        sample_weight = TensorSpec((keras_seam.flatten(x)[0].shape[0],), keras.config.floatx())
    return x, y, sample_weight


def _cut(batch: Any, count: int) -> Any:
    return tuple(keras_seam.map_leaves(lambda leaf: _as_numpy(leaf)[:count], part) for part in batch)


def _spec_of(leaf: Any, size: int) -> TensorSpec:
    dtype = keras.backend.standardize_dtype(leaf.dtype) if hasattr(leaf, "dtype") else keras.config.floatx()
    fed = keras.config.floatx() if keras.backend.is_float_dtype(dtype) else dtype
    return TensorSpec((size, *(int(dimension) for dimension in leaf.shape[1:])), fed)


def _as_numpy(leaf: Any) -> Any:
    """A leaf as a numpy array where it is dense; anything else as it is."""
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
    return np.asarray(leaf) if hasattr(leaf, "__array__") else leaf
