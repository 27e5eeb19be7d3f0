"""Augmented image folders: repeatable on every backend, with classic changes and with Keras layers."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest

import memfit.data
from memfit import errors
from memfit.data import synthetic_images

CHANGES: dict[str, Any] = {"rotation_range": 25, "zoom_range": 0.2, "horizontal_flip": True, "rescale": 1 / 255}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("images") / "shapes"
    return synthetic_images.write_image_folder(path, num_images=18, num_classes=2, image_size=(48, 48))


def load(folder: pathlib.Path, **options: Any) -> Any:
    return memfit.data.image_folder(folder, **{"image_size": (32, 32), "batch_size": 4, "seed": 3, **options})


def layers() -> keras.Sequential:
    return keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)])


@pytest.mark.parametrize("kind", ["classic", "layers"])
def test_an_image_is_a_function_of_seed_epoch_and_sample(folder: pathlib.Path, kind: str) -> None:
    changes = memfit.data.Augmentation(**CHANGES) if kind == "classic" else layers()
    one, many = load(folder, augmentation=changes, workers=1), load(folder, augmentation=changes, workers=3)
    plain = load(folder, rescale=1 / 255 if kind == "classic" else None)
    first = [np.array(images) for images, _ in one]
    # In another order, by other threads, twice.
    again = {index: np.array(many[index][0]) for index in (3, 0, 4, 2, 1)}
    for index, images in enumerate(first):
        assert np.array_equal(images, again[index])
        assert np.abs(images - plain[index][0]).mean() > 0.01 * plain[index][0].mean()
    one.epoch, many.epoch = 1, 1
    assert np.array_equal(one[0][0], many[0][0])
    samples = load(folder, augmentation=changes, shuffle=False)
    before = np.array(samples[0][0])
    samples.epoch = 1
    assert not np.array_equal(before, samples[0][0])


def test_validation_data_is_scaled_and_not_changed_at_random(folder: pathlib.Path) -> None:
    for changes in (memfit.data.Augmentation(**CHANGES), layers()):
        _, validation = load(folder, augmentation=changes, validation_split=0.3, subset="both")
        _, plain = load(folder, validation_split=0.3, subset="both", rescale=getattr(changes, "rescale", None))
        assert np.allclose(validation[0][0], plain[0][0], atol=1e-6)


def test_a_function_of_batches_may_change_their_shape(folder: pathlib.Path) -> None:
    data = load(folder, augmentation=lambda images: images[:, 4:-4, 4:-4] / 255)
    assert data[0][0].shape == (4, 24, 24, 3)
    assert data[0][0].max() <= 1
    with pytest.raises(errors.ArgumentError, match="as many images"):
        load(folder, augmentation=lambda images: images[:1])[0]
    with pytest.raises(errors.ArgumentError, match="given twice"):
        load(folder, augmentation=memfit.data.Augmentation(**CHANGES), rescale=0.5)
    with pytest.raises(errors.ArgumentError, match="`augmentation` must be"):
        load(folder, augmentation="flip")


@pytest.mark.parametrize("kind", ["classic", "layers"])
def test_a_model_trains_on_augmented_images(folder: pathlib.Path, kind: str) -> None:
    changes = memfit.data.Augmentation(**CHANGES) if kind == "classic" else layers()
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = load(folder, augmentation=changes)
    assert len(model.fit(data, epochs=2, verbose=0).history["loss"]) == 2


@pytest.mark.parametrize("cache", ["memory", "disk", "auto"])
def test_a_cache_changes_no_image(
    folder: pathlib.Path, cache: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    changes = memfit.data.Augmentation(**CHANGES)
    plain, cached = load(folder, augmentation=changes), load(folder, augmentation=changes, cache=cache)
    assert cached.cache_reason.startswith(f"cache {'on disk' if cache == 'disk' else 'in memory'}")
    for _ in range(2):
        for one, other in zip(plain, cached, strict=True):
            assert np.array_equal(one[0], other[0])
    reads: list[str] = []
    reader = cached.source.reader
    monkeypatch.setattr(reader, "pixels", reads.append)
    assert len(list(cached)) == len(plain)
    assert not reads
    if cache == "disk":
        again = load(folder, augmentation=changes, cache=cache)
        monkeypatch.setattr(again.source.reader, "pixels", reads.append)
        assert np.array_equal(again[0][0], load(folder, augmentation=changes)[0][0])
        assert not reads
