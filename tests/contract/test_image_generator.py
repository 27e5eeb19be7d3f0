"""Keras' own ``ImageDataGenerator`` beside its translation: fixed changes pixel by pixel, files, labels and order exactly."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest

import memfit.data
from memfit import errors
from memfit.backends import keras_images
from memfit.data import image_generator, synthetic_images
from memfit.data.augmentation import Augmentation
from memfit.data.image_transform import Transform

pytest.importorskip("scipy")
legacy = pytest.importorskip("keras.src.legacy.preprocessing.image")

FIXED: list[dict[str, Any]] = [
    {"theta": 31.0},
    {"tx": 5.5, "ty": -3.25},
    {"shear": 20.0},
    {"zx": 0.7, "zy": 1.3},
    {"flip_horizontal": True, "flip_vertical": True},
    {"theta": -12.0, "tx": 4.0, "ty": 2.5, "shear": 9.0, "zx": 1.2, "zy": 0.9, "flip_horizontal": True},
    {"channel_shift_intensity": 33.5},
    {"brightness": 1.4},
    {"theta": 10.0, "channel_shift_intensity": -20.0, "brightness": 0.6, "flip_vertical": True},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("images") / "shapes"
    return synthetic_images.write_image_folder(path, num_images=21, num_classes=3, image_size=(40, 52))


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    bands = [128 + 60 * np.sin(x / 4 + band) + 60 * np.cos(y / 5 - band) for band in range(channels)]
    return np.stack(bands, -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("fill_mode", ["nearest", "constant", "reflect", "wrap"])
@pytest.mark.parametrize("shape", [(40, 40), (30, 44)])
def test_fixed_changes_give_the_same_pixels(shape: tuple[int, int], fill_mode: str) -> None:
    generator = legacy.ImageDataGenerator(fill_mode=fill_mode, cval=9.0, rescale=1 / 255)
    ours = Augmentation(fill_mode=fill_mode, cval=9.0, rescale=1 / 255, axes_of_keras=True)
    for fixed in FIXED:
        image = smooth(*shape)
        expected = generator.standardize(generator.apply_transform(image.astype(np.float32), dict(fixed)))
        names = {"channel_shift_intensity": "channel_shift"}
        found = ours(image, Transform(**{names.get(name, name): value for name, value in fixed.items()}))
        error = np.abs(found - expected) * 255
        # Brightness makes bytes of the levels: one that lies between two may fall to either side.
        assert error.max() <= (1.5 if "brightness" in fixed else 0.1), fixed
        assert error.mean() < 0.02, fixed


def test_ranges_of_draws_are_the_same() -> None:
    generator = legacy.ImageDataGenerator(
        rotation_range=30, width_shift_range=0.2, height_shift_range=[1, 4], zoom_range=0.25, brightness_range=(0.5, 2)
    )
    described = keras_images.described(legacy.NumpyArrayIterator(np.zeros((2, 20, 40, 3)), None, generator))
    ours = image_generator._augmentation(described)
    rng = np.random.default_rng(0)
    mine = [ours.drawn((20, 40, 3), rng) for _ in range(3000)]
    theirs = [generator.get_random_transform((20, 40, 3)) for _ in range(3000)]
    for name in ("theta", "tx", "ty", "zx", "zy", "brightness"):
        quantiles = [
            np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
            for values in ([getattr(one, name) for one in mine], [one[name] for one in theirs])
        ]
        span = quantiles[1][-1] - quantiles[1][0]
        # Of the four shifts to choose from any may be the median.
        assert np.abs(quantiles[0] - quantiles[1]).max() < (0.5 if name == "tx" else 0.06) * span, name


@pytest.mark.parametrize("class_mode", ["categorical", "sparse", "binary", "input", None])
@pytest.mark.parametrize("subset", ["training", "validation"])
def test_files_order_and_labels_are_those_of_the_iterator(
    folder: pathlib.Path, subset: str, class_mode: str | None
) -> None:
    iterator = legacy.ImageDataGenerator(rescale=1 / 255, validation_split=0.3).flow_from_directory(
        str(folder),
        target_size=(24, 28),
        batch_size=4,
        class_mode=class_mode,
        shuffle=False,
        subset=subset,
        classes=["crosses", "circles", "checkerboards"],
        color_mode="grayscale",
    )
    data = memfit.data.from_image_data_generator(iterator, workers=2)
    assert data.file_paths == iterator.filepaths
    assert data.class_indices == iterator.class_indices
    assert len(data) == len(iterator)
    for index in range(len(data)):
        batches = (data[index], iterator[index])
        flat = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
        assert len(flat[0]) == len(flat[1])
        for mine, theirs in zip(*flat, strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.shape == theirs.shape
            # Pixels were decoded by another library; a JPEG's grey is not quite that of its colours.
            assert np.abs(mine - theirs).mean() < (1 / 255 if mine.ndim == 4 else 1e-9)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_interpolated_images_are_near_those_of_the_iterator(folder: pathlib.Path, interpolation: str) -> None:
    iterator = legacy.ImageDataGenerator().flow_from_directory(
        str(folder), target_size=(24, 24), interpolation=interpolation, shuffle=False
    )
    data = memfit.data.from_image_data_generator(iterator)
    assert np.abs(data[0][0] - iterator[0][0]).mean() < 4


def test_a_data_frame_and_arrays(folder: pathlib.Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = sorted(str(path) for path in folder.glob("*/*.jpg"))
    frame = pandas.DataFrame(
        {
            "path": paths,
            "kind": [["a", "b"] if number % 2 else ["c"] for number in range(len(paths))],
            "size": np.arange(len(paths), dtype="float32"),
            "weight": np.linspace(0, 1, len(paths)),
        }
    )
    generator = legacy.ImageDataGenerator(samplewise_center=True)
    common: dict[str, Any] = {"x_col": "path", "target_size": (16, 16), "batch_size": 5, "shuffle": False}
    x, y = np.random.default_rng(0).uniform(0, 255, (11, 8, 8, 3)), np.arange(11)
    iterators = [
        generator.flow_from_dataframe(frame, y_col="kind", class_mode="categorical", weight_col="weight", **common),
        generator.flow_from_dataframe(frame, y_col="size", class_mode="raw", **common),
        generator.flow_from_dataframe(frame, y_col=["size", "weight"], class_mode="multi_output", **common),
        generator.flow(x, y, batch_size=4, shuffle=False, sample_weight=y / 10.0),
        generator.flow((x, [y, -y]), batch_size=4, shuffle=False),
    ]
    for iterator in iterators:
        data = memfit.data.from_image_data_generator(iterator)
        flat = [keras.tree.flatten(batches[1]) for batches in (data, iterator)]
        for mine, theirs in zip(*flat, strict=True):
            assert mine.dtype == theirs.dtype
            assert np.allclose(mine, theirs, atol=3)


def test_what_cannot_be_translated_says_why(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    class Own(legacy.ImageDataGenerator):
        def random_transform(self, x: Any, seed: Any = None) -> Any:
            return x

    plain = legacy.ImageDataGenerator()
    cases = {
        "save_to_dir": plain.flow_from_directory(str(folder), save_to_dir=str(tmp_path)),
        "has its own random_transform": Own().flow_from_directory(str(folder)),
        "'lanczos'": plain.flow_from_directory(str(folder), interpolation="lanczos"),
        "keep_aspect_ratio": plain.flow_from_directory(str(folder), keep_aspect_ratio=True),
        "fit was not called": legacy.ImageDataGenerator(featurewise_center=True).flow_from_directory(str(folder)),
        "channels_first": legacy.ImageDataGenerator(data_format="channels_first").flow_from_directory(str(folder)),
        "`fill_mode` must be": legacy.ImageDataGenerator(fill_mode="mirror").flow_from_directory(str(folder)),
    }
    for reason, iterator in cases.items():
        assert image_generator.translated(iterator)[0] is None
        assert reason in image_generator.translated(iterator)[1]
        with pytest.raises(errors.ArgumentError, match="Train on it as it is"):
            memfit.data.from_image_data_generator(iterator)
    assert image_generator.translated(np.zeros(3))[0] is None
    with pytest.raises(errors.ArgumentError, match="must be what"):
        memfit.data.from_image_data_generator(np.zeros(3))


def test_a_model_trains_on_a_translated_iterator(folder: pathlib.Path) -> None:
    generator = legacy.ImageDataGenerator(rotation_range=20, horizontal_flip=True, featurewise_center=True)
    generator.fit(np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)))
    iterator = generator.flow_from_directory(str(folder), target_size=(16, 16), batch_size=8, seed=5)
    data, _ = image_generator.translated(iterator)
    assert data.seed == 5
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy")
    assert len(model.fit(data, epochs=2, verbose=0).history["loss"]) == 2


def test_the_parts_of_keras_that_are_named_are_there() -> None:
    generator = legacy.ImageDataGenerator()
    for name in (*keras_images.TRANSFORM_ATTRIBUTES, "zca_whitening_matrix"):
        assert hasattr(generator, name), name
    for name in (*keras_images._ITERATORS, "Iterator"):
        assert isinstance(getattr(legacy, name), type), name
    for name in keras_images._METHODS:
        assert callable(getattr(legacy.ImageDataGenerator, name)), name
