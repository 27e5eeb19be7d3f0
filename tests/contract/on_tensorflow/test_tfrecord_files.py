"""TFRecord files that TensorFlow wrote, read without it, against what TensorFlow reads."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow only", allow_module_level=True)

import tensorflow as tf

from memfit import data

NUM = 20


def example(rng: np.random.Generator, number: int) -> Any:
    image = tf.io.encode_png(np.full((6, 5, 3), 10 * number, np.uint8)).numpy()
    features = {
        "floats": tf.train.Feature(float_list=tf.train.FloatList(value=rng.normal(size=6))),
        "integers": tf.train.Feature(int64_list=tf.train.Int64List(value=rng.integers(-(2**62), 2**62, 4))),
        "raw": tf.train.Feature(bytes_list=tf.train.BytesList(value=[rng.integers(0, 255, 8, np.uint8).tobytes()])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_the_same_values_as_tensorflow(tmp_path: pathlib.Path, compression: str) -> None:
    rng = np.random.default_rng(0)
    serialized = [example(rng, number).SerializeToString() for number in range(NUM)]
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord"), compression) as writer:
        for one in serialized:
            writer.write(one)
    wanted = {
        "floats": ("float32", (2, 3)),
        "integers": ("int64", (4,)),
        "raw": ("int16", (4,)),
        "image": ("image", (6, 5, 3)),
        "label": ("int64", ()),
    }
    dataset = data.tfrecord(tmp_path, wanted, label="label", batch_size=6, shuffle=False)
    fixed = {
        "floats": tf.io.FixedLenFeature((2, 3), tf.float32),
        "integers": tf.io.FixedLenFeature((4,), tf.int64),
        "raw": tf.io.FixedLenFeature((), tf.string),
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }
    expected = [tf.io.parse_single_example(one, fixed) for one in serialized]
    features = {name: np.concatenate([x[name] for x, _ in dataset]) for name in wanted if name != "label"}
    labels = np.concatenate([y for _, y in dataset])
    assert labels.tolist() == list(range(NUM))
    for number, theirs in enumerate(expected):
        np.testing.assert_array_equal(features["floats"][number], theirs["floats"])
        np.testing.assert_array_equal(features["integers"][number], theirs["integers"])
        np.testing.assert_array_equal(features["raw"][number], tf.io.decode_raw(theirs["raw"], tf.int16))
        np.testing.assert_array_equal(features["image"][number], tf.io.decode_png(theirs["image"]))
