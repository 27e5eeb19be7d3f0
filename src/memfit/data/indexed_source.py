"""``memfit.data.indexed`` and ``memfit.data.tfds``: data sets of other libraries that give a sample by its number."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from memfit import errors
from memfit.data import pipeline_options
from memfit.data.optional import required
from memfit.data.pipeline_options import Division, PipelineOptions
from memfit.data.sample_source import SampleSource, as_array, spec_of


def indexed(
    dataset: Any,
    *,
    x: str | Sequence[str] | None = None,
    y: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    workers: int = 1,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
) -> Any:
    """Anything with a length and samples by number, for ``fit`` on every backend: a map-style torch ``Dataset``, a Hugging
    Face ``datasets.Dataset``, a data source of TensorFlow Datasets, a list of samples.

    Samples are fetched one batch at a time and must be of one shape; the first is looked at to learn it. None of those
    libraries is imported.

    Args:
        dataset: Has ``len`` and ``dataset[i]``; ``__getitems__``, where it has that, gets many at once.
        x: Where a sample is a dict: the key of the input, or several for a dict of inputs. Left out: all keys but ``y``.
        y: Where a sample is a dict: the key of the target.
        transform: Called with each sample before it is looked at; returns ``x``, ``(x, y)``, ``(x, y, sample_weight)`` or a
            dict. Random augmentation in it, or in the data set, is not repeated by ``seed``.
        batch_size: Samples of a batch. The last one of an epoch has the rest.
        shuffle: Whether every epoch takes the samples in a new order, a permutation of all of them.
        seed: Makes the order of every epoch and the split repeatable; drawn from Python's ``random`` if left out.
        validation_split: Share of the samples for validation.
        subset: "training", "validation", or "both" for a tuple of the two; needed with ``validation_split``.
        workers: Threads that fetch. More than one only where the data set may be read from several at once.
        max_queue_size: Batches made ahead.
        max_queue_bytes: Bytes of batches ahead.

    Raises:
        ArgumentError: The data set has no length or no samples, a key does not exist, or a sample is not made of numbers.
        MemfitError: In training: a sample is not shaped like the first.

    Example:
        >>> samples = [{"pixels": [i, i], "label": i % 2} for i in range(10)]
        >>> dataset = indexed(samples, x="pixels", y="label", batch_size=4, shuffle=False)
        >>> x, y = dataset[0]
        >>> x.shape, y.tolist()
        ((4, 2), [0, 1, 0, 1])
    """
    try:
        num_samples = len(dataset)
    except (TypeError, NotImplementedError):
        num_samples = None
    if num_samples is None or not hasattr(dataset, "__getitem__"):
        raise errors.ArgumentError(
            f"`dataset` must have a length and samples by number. Received: a {type(dataset).__module__}."
            f"{type(dataset).__qualname__}. An iterable goes into fit as it is."
        )
    if num_samples == 0:
        raise errors.ArgumentError("The data is empty. Received: a data set of 0 samples. Pass at least one sample.")
    chosen = _Chosen(dataset, (x,) if isinstance(x, str) else x, y, transform, single=isinstance(x, str))
    first = chosen([0])[0]
    division = Division(validation_split, subset, seed)
    options = PipelineOptions(
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
    )
    import keras

    from memfit.data.pipeline import divided  # Both import Keras, which takes seconds: last.

    return divided(SampleSource(num_samples, chosen, spec=spec_of(first, keras.config.floatx())), options, division)


def tfds(
    name_or_builder: Any,
    split: str = "train",
    *,
    x: str | Sequence[str] | None = None,
    y: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    **options: Any,
) -> Any:
    """A data set of TensorFlow Datasets through its random-access files; TensorFlow itself is not needed.

    Needs ``pip install 'memfit[tfds]'``. A data set that is on disk as TFRecord files has no random access:
    ``memfit.data.tfrecord`` reads those.

    Args:
        name_or_builder: A name such as "mnist", or a ``tfds.core.DatasetBuilder``.
        split: As in TensorFlow Datasets: "train", "test", "train[:80%]".
        x: Key of the input, or several; that of the data set's supervised keys if left out.
        y: Key of the target; that of the supervised keys if left out.
        data_dir: Where the data set lies.
        download: Whether to download and prepare it where it is not there.
        **options: As for ``memfit.data.indexed``: ``transform``, ``batch_size``, ``seed``, ``validation_split``, ...

    Raises:
        ArgumentError: There is no such data set or split, or it has no random access.
        MemfitError: TensorFlow Datasets is not installed.
    """
    library = required("tensorflow_datasets", extra="tfds", purpose="memfit.data.tfds")
    builder = name_or_builder
    if isinstance(builder, str):
        builder = library.builder(builder, data_dir=data_dir, file_format="array_record")
    if download:
        builder.download_and_prepare()
    if split.split("[")[0] not in builder.info.splits:
        raise errors.ArgumentError(
            f"`split` must be one of {list(builder.info.splits)}, or a part of one such as 'train[:80%]'. "
            f"Received: split={split!r}"
            + ("" if builder.info.splits else ", and the data set is not prepared: download=True.")
        )
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise errors.ArgumentError(
            f"The data set has no random access on disk. Received: {builder.info.full_name} as {builder.info.file_format}. "
            'Prepare it anew with tfds.builder(name, file_format="array_record"), or read its files with '
            "memfit.data.tfrecord."
        ) from error
    keys = builder.info.supervised_keys
    if x is None and y is None and keys is not None and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        x, y = keys
    return indexed(source, x=x, y=y, **options)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Samples of a data set as ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``; called with their numbers."""

    dataset: Any
    x: Sequence[str] | None
    y: str | None
    transform: Callable[[Any], Any] | None
    single: bool

    def __call__(self, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        many = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[number] for number in numbers] if many is None else many(list(numbers))
        return [self._parts(sample) for sample in samples]

    def _parts(self, sample: Any) -> tuple[Any, ...]:
        if self.transform is not None:
            sample = self.transform(sample)
        if isinstance(sample, dict):
            return self._of_dict(sample)
        if isinstance(sample, (tuple, list)) and 1 <= len(sample) <= 3:
            return tuple(_arrays(part) for part in sample)
        return (_arrays(sample),)

    def _of_dict(self, sample: dict[str, Any]) -> tuple[Any, ...]:
        keys = [key for key in sample if key != self.y] if self.x is None else list(self.x)
        absent = [key for key in (*keys, *([] if self.y is None else [self.y])) if key not in sample]
        if absent:
            raise errors.ArgumentError(
                f"A sample has no {', '.join(map(repr, absent))}. Received: x={self.x and list(self.x)}, y={self.y!r}. "
                f"It has: {list(sample)}"
            )
        inputs = sample[keys[0]] if self.single or (self.x is None and len(keys) == 1) else {k: sample[k] for k in keys}
        return (_arrays(inputs),) if self.y is None else (_arrays(inputs), _arrays(sample[self.y]))


def _arrays(part: Any) -> Any:
    """Dicts and tuples hold several arrays; a list, as tables give them, is one."""
    if isinstance(part, dict):
        return {key: _arrays(inner) for key, inner in part.items()}
    return tuple(map(_arrays, part)) if isinstance(part, tuple) else as_array(part)
