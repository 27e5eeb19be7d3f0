"""TensorFlow: the classic ``tf.data`` chain from image files to batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ImageChain:
    """How the chain is made.

    Attributes:
        image_size: (height, width).
        channels: 1, 3 or 4.
        batch_size: Images of a batch.
        shuffle: Whether each epoch has a new order.
        seed: Of the order, or None.
        parallel_calls: Files decoded at once.
        cache: None, "" for memory, or a file prefix.
    """

    image_size: tuple[int, int]
    channels: int
    batch_size: int
    shuffle: bool
    seed: int | None
    parallel_calls: int
    cache: str | None


def dataset(paths: Sequence[str], labels: np.ndarray | None, chain: ImageChain) -> tf.data.Dataset:
    """list - shuffle names - read, decode, resize - cache - batch - prefetch, bounded by construction.

    Names are shuffled and not images: the buffer holds all of them, so that the order is a full permutation. With a cache
    the decoded images come from it in one order, and the numbers of the samples are shuffled in their place as far as 1024
    images reach.
    """
    source: Any = list(paths) if labels is None else (list(paths), labels)
    data = tf.data.Dataset.from_tensor_slices(source)
    if chain.shuffle:
        data = data.shuffle(len(paths), seed=chain.seed, reshuffle_each_iteration=chain.cache is None)

    def load(path: tf.Tensor, *label: tf.Tensor) -> Any:
        image = _decoded(tf.io.read_file(path), path, chain)
        return (image, *label) if label else image

    data = data.map(load, num_parallel_calls=chain.parallel_calls, deterministic=True)
    if chain.cache is not None:
        data = data.cache(chain.cache)
        if chain.shuffle:
            data = data.shuffle(min(len(paths), 1024), seed=chain.seed)

    def as_floats(image: tf.Tensor, *label: tf.Tensor) -> Any:
        image = tf.cast(image, tf.float32)
        return (image, *label) if label else image

    # Bytes until here: a cache and a shuffle hold a quarter of what floats take.
    return data.batch(chain.batch_size).map(as_floats, num_parallel_calls=1).prefetch(2)


def _decoded(data: tf.Tensor, path: tf.Tensor, chain: ImageChain) -> tf.Tensor:
    """uint8, shape (height, width, channels)."""
    is_jpeg = tf.strings.regex_full_match(tf.strings.lower(path), r".*\\.(jpe?g|jfif)")
    image = tf.cond(
        is_jpeg,
        lambda: _decoded_jpeg(data, chain),
        lambda: tf.io.decode_image(data, channels=chain.channels, expand_animations=False),
    )
    image.set_shape((None, None, chain.channels))
    image = tf.image.resize(image, chain.image_size)
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)


def _decoded_jpeg(data: tf.Tensor, chain: ImageChain) -> tf.Tensor:
    """Shrunk while it is decoded, by the largest of 1, 2, 4 and 8 that leaves it no smaller than wanted."""
    shape = tf.io.extract_jpeg_shape(data)
    factor = tf.minimum(shape[0] // chain.image_size[0], shape[1] // chain.image_size[1])
    scales = (1, 2, 4, 8)
    branch = sum(tf.cast(factor >= scale, tf.int32) for scale in scales[1:])
    decoders = [lambda scale=scale: tf.io.decode_jpeg(data, chain.channels, ratio=scale) for scale in scales]
    return tf.switch_case(branch, decoders)
