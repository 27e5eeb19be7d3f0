"""Data that code under protection passes to ``fit``, made to fit or made faster on the way."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.backends import keras_images, keras_seam
from memfit.data import given


def model(size: int = 12, classes: int = 2) -> Any:
    layers = keras.layers
    body = [layers.Flatten(), layers.Dense(classes, activation="softmax")]
    model = keras.Sequential([keras.Input((size, size, 3)), *body])
    model.compile("sgd", "categorical_crossentropy")
    return model


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for index in range(6):
            keras.utils.save_img(
                tmp_path / name / f"{index}.png", np.full((12, 12, 3), 40 * index + number), scale=False
            )
    return tmp_path


def test_an_image_data_generator_is_read_by_memfit_under_protection(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators = importlib.import_module("keras.src.legacy.preprocessing.image")
    iterator = generators.ImageDataGenerator(rescale=1 / 255).flow_from_directory(
        str(images), target_size=(12, 12), batch_size=4
    )
    assert keras_images.is_legacy_iterator(iterator)
    read: list[Any] = []
    monkeypatch.setattr(type(iterator), "__getitem__", lambda self, index: read.append(index))
    with memfit.protect():
        history = model().fit(iterator, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2
    assert read == []


@pytest.mark.skipif(keras_seam.framework() != "tensorflow", reason="a pipeline of TensorFlow's")
def test_a_cache_that_the_budget_has_no_room_for_goes_to_disk() -> None:
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=(64, 12, 12, 3)).astype("float32")
    big = tf.data.Dataset.from_tensor_slices((x, np.eye(2, dtype="float32")[np.arange(64) % 2]))
    pipeline = big.map(lambda a, b: (a, b)).repeat(40_000).cache().batch(32)
    budget = memfit.budget().host_bytes // 8
    history = memfit.fit(model(), pipeline, steps_per_epoch=2, verbose=0, budget=budget)
    said = [event.message for event in history.memfit.events if event.kind == "data"]
    assert any("cache" in sentence for sentence in said), history.memfit.events


def test_a_cache_of_images_is_chosen_for_the_room_that_the_budget_leaves(images: Path) -> None:
    dataset = memfit.data.image_folder(
        images, image_size=(12, 12), batch_size=4, label_mode="categorical", cache="auto"
    )
    assert "in memory" in dataset.cache_reason, "a quarter of what is free"
    decoded = 12 * 12 * 12 * 3
    _, said, held = given.within({"x": dataset, "validation_data": None}, 4 * decoded - 4)
    assert said == (f"x: {dataset.cache_reason}",)
    assert "cache on disk" in said[0]
    assert (held, dataset.source.growing_bytes) == (0, 0)
    _, said, held = given.within({"x": None, "validation_data": dataset}, 4 * decoded)
    assert "in memory" in said[0]
    assert held == dataset.source.growing_bytes == decoded

    before = dataset.peak_bytes
    history = memfit.fit(model(), dataset, epochs=2, verbose=0)
    assert f"x: {dataset.cache_reason}" in [event.message for event in history.memfit.events if event.kind == "data"]
    assert dataset.source.growing_bytes == 0, "filled in the first epoch"
    assert dataset.peak_bytes == pytest.approx(before, abs=2**20)
    _, said, _ = given.within({"x": dataset}, 4)
    assert "in memory" in said[0], "what is filled stays"


def test_a_cache_asked_for_by_name_stays_where_it_is(images: Path) -> None:
    dataset = memfit.data.image_folder(images, image_size=(12, 12), batch_size=4, cache="memory")
    assert given.within({"x": dataset}, 4)[1] == (f"x: {dataset.cache_reason}",)
    assert "in memory" in dataset.cache_reason
