"""TensorFlow: what a ``tf.data`` pipeline holds, and the same pipeline with smaller buffers.

A data set in Python keeps the data set that it was made from and its arguments, among them the user's function, in private
attributes (``tests/contract/on_tensorflow/test_pipelines.py`` names each). So a pipeline is built again from any stage on
with the public methods, and nothing of TensorFlow's graph is edited.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from memfit.backends.pipeline_records import ENDLESS, Change, Stage

_AUTOTUNED_BUFFER = 16
"""Elements that a prefetch which TensorFlow sizes itself is taken to hold: it doubles its buffer each time it runs dry."""

_MEASURED = 4
"""Elements that are made to learn their size where shapes do not tell."""

Apply = Callable[[Any, tf.data.Dataset, int | None], tf.data.Dataset]


def stages(dataset: tf.data.Dataset) -> tuple[Stage, ...]:
    """The stages from the source; those inside of a stage of several inputs come first and cannot be changed."""
    chain = _chain(dataset)
    changeable = _changeable(chain)
    inside = [stage for source in _inputs(chain[0]) for stage in stages(source)] if len(_inputs(chain[0])) > 1 else []
    fixed = [Stage(stage.kind, stage.text, stage.element_bytes, stage.capacity, False) for stage in inside]
    return (*fixed, *(_stage(chain, position, changeable[position]) for position in range(len(chain))))


def rebuilt(dataset: tf.data.Dataset, changes: Sequence[Change], *, ram_budget: int | None) -> tf.data.Dataset:
    """See ``PipelineTools.rebuilt``."""
    result = dataset
    if changes:
        chain = _chain(dataset)
        first = len(stages(dataset)) - len(chain)
        result = _reapplied(chain, {change.index - first: change for change in changes})
    if ram_budget is not None:
        options = tf.data.Options()
        options.autotune.ram_budget = ram_budget
        result = result.with_options(options)
    return result


def _chain(dataset: tf.data.Dataset) -> list[Any]:
    """The data sets from the last one without a single input to this one."""
    chain = [dataset]
    while len(_inputs(chain[-1])) == 1:
        chain.append(_inputs(chain[-1])[0])
    return chain[::-1]


def _inputs(dataset: Any) -> list[Any]:
    return dataset._inputs()


def _changeable(chain: list[Any]) -> list[bool]:
    """Whether each stage and all after it can be applied again."""
    result, all_after = [], True
    for dataset in reversed(chain[1:]):
        all_after = all_after and _name(dataset) in _APPLY
        result.append(all_after)
    return [False, *reversed(result)]


def _reapplied(chain: list[Any], changes: dict[int, Change]) -> tf.data.Dataset:
    """The chain with changes, by position in it."""
    order = list(range(1, len(chain)))
    for position, change in changes.items():
        if change.kind == "move":
            order.remove(position)
            order.insert(order.index(position - (change.index - change.size)), position)
    start = next(place for place, position in enumerate(order) if order[place] != place + 1 or position in changes)
    result = chain[start]
    try:
        for position in order[start:]:
            here = changes.get(position)
            if here is not None and here.kind == "drop":
                continue
            if here is not None and here.kind == "file":
                result = result.cache(here.target)
                continue
            size = here.size if here is not None and here.kind == "size" else None
            result = _APPLY[_name(chain[position])](chain[position], result, size)
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, tf.errors.OpError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return result


def _name(dataset: Any) -> str:
    return type(dataset).__name__.strip("_")


def _constant(tensor: Any) -> int:
    value = tf.get_static_value(tensor)
    return -1 if value is None else int(value)


# How each stage is applied to another input: of the old data set, the new input, and a new size or None.


def _map(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.map(old._map_func._func)


def _parallel_map(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    calls = _constant(old._num_parallel_calls) if size is None else size
    return new.map(old._map_func._func, num_parallel_calls=calls, deterministic=_deterministic(old))


def _deterministic(old: Any) -> bool | None:
    return {"true": True, "false": False}.get(old._deterministic)


def _batch(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.batch(_constant(old._batch_size), drop_remainder=bool(_constant(old._drop_remainder)))


def _parallel_batch(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.batch(
        _constant(old._batch_size),
        drop_remainder=bool(_constant(old._drop_remainder)),
        num_parallel_calls=_constant(old._num_parallel_calls) if size is None else size,
        deterministic=_deterministic(old),
    )


def _padded_batch(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.padded_batch(
        _constant(old._batch_size),
        padded_shapes=old._padded_shapes,
        padding_values=old._padding_values,
        drop_remainder=bool(_constant(old._drop_remainder)),
    )


def _shuffle(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    seeds = _constant(old._seed), _constant(old._seed2)
    return new.shuffle(
        _constant(old._buffer_size) if size is None else size,
        seed=None if seeds == (0, 0) else seeds[1],
        reshuffle_each_iteration=old._reshuffle_each_iteration,
    )


def _cache(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.cache(tf.get_static_value(old._filename).decode())


def _prefetch(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.prefetch(_constant(old._buffer_size) if size is None else size)


def _options(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    return new.with_options(old.options())


def _interleave(old: Any, new: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    # Whether the order may vary is not kept by the data set: it is as the pipeline's options have it, in order by default.
    parallel = getattr(old, "_num_parallel_calls", None)
    return new.interleave(
        old._map_func._func,
        cycle_length=_constant(old._cycle_length),
        block_length=_constant(old._block_length),
        num_parallel_calls=None if parallel is None else _constant(parallel) if size is None else size,
    )


_APPLY: dict[str, Apply] = {
    "MapDataset": _map,
    "ParallelMapDataset": _parallel_map,
    "BatchDataset": _batch,
    "ParallelBatchDataset": _parallel_batch,
    "PaddedBatchDataset": _padded_batch,
    "ShuffleDataset": _shuffle,
    "CacheDataset": _cache,
    "PrefetchDataset": _prefetch,
    "OptionsDataset": _options,
    "InterleaveDataset": _interleave,
    "ParallelInterleaveDataset": _interleave,
    "FlatMapDataset": lambda old, new, size: new.flat_map(old._map_func._func),
    "FilterDataset": lambda old, new, size: new.filter(old._predicate._func),
    "RepeatDataset": lambda old, new, size: new.repeat(_constant(old._count)),
    "TakeDataset": lambda old, new, size: new.take(_constant(old._count)),
    "SkipDataset": lambda old, new, size: new.skip(_constant(old._count)),
    "ShardDataset": lambda old, new, size: new.shard(_constant(old._num_shards), _constant(old._index)),
}
_HOLDS_AND_KEEPS = ("ShuffleDataset", "CacheDataset", "PrefetchDataset", "RepeatDataset")


def _stage(chain: list[Any], position: int, changeable: bool) -> Stage:
    """What one data set of a chain holds."""
    dataset = chain[position]
    name = _name(dataset)
    one_to_one = name in ("MapDataset", "ParallelMapDataset")
    match name:
        case "CacheDataset":
            filename = tf.get_static_value(dataset._filename)
            in_memory = filename == b""
            capacity = _cardinality(chain, position) if in_memory else 0
            text = "cache()" if in_memory else "cache(file)"
            return Stage("cache", text, _element_bytes(chain, position), capacity, changeable)
        case "ShuffleDataset":
            buffer, available = _constant(dataset._buffer_size), _cardinality(chain, position)
            capacity = buffer if available is None else min(buffer, available)
            return Stage("shuffle", f"shuffle({buffer})", _element_bytes(chain, position), capacity, changeable)
        case "PrefetchDataset":
            buffer = _constant(dataset._buffer_size)
            shown = "AUTOTUNE" if buffer < 0 else str(buffer)
            capacity = _AUTOTUNED_BUFFER if buffer < 0 else buffer
            size = _element_bytes(chain, position)
            return Stage("prefetch", f"prefetch({shown})", size, capacity, changeable, autotuned=buffer < 0)
        case "BatchDataset" | "ParallelBatchDataset" | "PaddedBatchDataset":
            text = f"batch({_constant(dataset._batch_size)})"
            calls, autotuned = _parallel_calls(dataset)
            return Stage("batch", text, _element_bytes(chain, position), calls, changeable, autotuned=autotuned)
        case "MapDataset" | "ParallelMapDataset":
            calls, autotuned = _parallel_calls(dataset)
            text = "map(...)" if name == "MapDataset" else f"map(..., num_parallel_calls={calls})"
            size = _element_bytes(chain, position)
            return Stage("map", text, size, calls, changeable, one_to_one=one_to_one, autotuned=autotuned)
        case _:
            kind, text = ("repeat", "repeat()") if name == "RepeatDataset" else ("other", name)
            size = None if position else _element_bytes(chain, position)
            return Stage(kind, text, size, 0, changeable)  # type: ignore[arg-type]


def _parallel_calls(dataset: Any) -> tuple[int, bool]:
    """Elements in the making, and whether TensorFlow decides on their number: then there are as many as cores."""
    calls = getattr(dataset, "_num_parallel_calls", None)
    if calls is None:
        return 1, False
    number = _constant(calls)
    return (number, False) if number > 0 else (os.cpu_count() or 1, True)


def _cardinality(chain: list[Any], position: int) -> int | None:
    """The most elements that a data set gives, or None."""
    for dataset in reversed(chain[: position + 1]):
        number = int(dataset.cardinality())
        if number == tf.data.INFINITE_CARDINALITY:
            return ENDLESS
        if number != tf.data.UNKNOWN_CARDINALITY:
            return number
        # A filter leaves at most what it is given; what other stages of unknown number give, nothing tells.
        if _name(dataset) not in (
            "FilterDataset",
            *_HOLDS_AND_KEEPS,
            "OptionsDataset",
            "MapDataset",
            "ParallelMapDataset",
        ):
            return None
    return None


def _element_bytes(chain: list[Any], position: int) -> int | None:
    """Bytes of an element: from its shapes, from those before a batch, or measured."""
    dataset = chain[position]
    if position and _name(dataset) in (*_HOLDS_AND_KEEPS, "OptionsDataset"):
        return _element_bytes(chain, position - 1)
    if position and _name(dataset) in ("BatchDataset", "ParallelBatchDataset"):
        sample = _element_bytes(chain, position - 1)
        return None if sample is None else sample * _constant(dataset._batch_size)
    specs = tf.nest.flatten(dataset.element_spec)
    sizes = [_spec_bytes(spec) for spec in specs]
    if all(size is not None for size in sizes):
        return sum(size for size in sizes if size is not None)
    return _measured_bytes(chain, position)


def _spec_bytes(spec: Any) -> int | None:
    if not isinstance(spec, tf.TensorSpec) or spec.dtype in (tf.string, tf.variant, tf.resource):
        return None
    if not spec.shape.is_fully_defined():
        return None
    return math.prod(spec.shape.as_list()) * spec.dtype.size


def _measured_bytes(chain: list[Any], position: int) -> int | None:
    """The mean size of the first few elements, made without the stages that would fill their buffers for it."""
    holders = {
        place: Change(place, "drop")
        for place in range(1, position + 1)
        if _name(chain[place]) in (*_HOLDS_AND_KEEPS, "OptionsDataset")
    }
    try:
        bare = _reapplied(chain[: position + 1], holders) if holders else chain[position]
        sizes = [sum(map(_tensor_bytes, tf.nest.flatten(element))) for element in bare.take(_MEASURED)]
    except (ValueError, KeyError, tf.errors.OpError):
        return None
    return int(np.mean(sizes)) if sizes else 0


def _tensor_bytes(tensor: Any) -> int:
    if isinstance(tensor, (tf.RaggedTensor, tf.SparseTensor)):
        return sum(map(_tensor_bytes, tf.nest.flatten(tensor, expand_composites=True)))
    if tensor.dtype == tf.string:
        # TensorFlow's strings take 24 bytes beside their characters.
        return sum(24 + len(text) for text in np.asarray(tensor).ravel().tolist())
    return int(tensor.shape.num_elements()) * tensor.dtype.size
