"""Images with other targets than the folder that they lie in: tables of paths, and masks in a parallel folder."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import memfit
from memfit import data, errors

NUM = 12
SIZE = (12, 10)


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """Image n has the colour 10 n; its left third, and its mask there, is white."""
    folder, masks = tmp_path / "images", tmp_path / "masks"
    for n in range(NUM):
        pixels = np.full((24, 20, 3), 10 * n, np.uint8)
        pixels[:, :6] = 255
        for place in (folder, masks):
            (place / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "ab"[n % 2] / f"{n:02d}.png")
        Image.fromarray((pixels[..., 0] == 255).astype(np.uint8) * 255).save(masks / "ab"[n % 2] / f"{n:02d}.png")
    return folder


def rows(images: pathlib.Path) -> dict[str, list[Any]]:
    return {
        "path": [f"{'ab'[n % 2]}/{n:02d}.png" for n in range(NUM)],
        "angle": [n / 10 for n in range(NUM)],
        "red": [n % 2 for n in range(NUM)],
        "big": [int(n > 5) for n in range(NUM)],
        "kind": [["cat", "dog", "eel"][n % 3] for n in range(NUM)],
        "tags": [" ".join(["wet", "old"][: n % 3]) or "new" for n in range(NUM)],
        "mask": [f"../masks/{'ab'[n % 2]}/{n:02d}.png" for n in range(NUM)],
    }


def load(images: pathlib.Path, label: Any, **options: Any) -> Any:
    options = {"directory": images, "image_size": SIZE, "batch_size": 4, "seed": 0, **options}
    return data.image_table(rows(images), "path", label, **options)


def number(image: np.ndarray) -> int:
    return round(float(image[0, -1, 0])) // 10


def targets(dataset: Any) -> dict[int, Any]:
    return {number(image): y.tolist() for x, ys in dataset for image, y in zip(x, ys, strict=True)}


def test_numbers_are_predicted_and_training_on_them_works(images: pathlib.Path) -> None:
    dataset = load(images, "angle")
    assert targets(dataset) == {n: pytest.approx(n / 10) for n in range(NUM)}
    inputs = keras.Input((*SIZE, 3))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(inputs)))
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    history = memfit.fit(model, dataset, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


def test_several_labels_at_once_from_columns_and_from_words(images: pathlib.Path) -> None:
    columns = load(images, ["red", "big"])
    assert targets(columns) == {n: [n % 2, int(n > 5)] for n in range(NUM)}
    words = load(images, "tags", separator=" ")
    assert words.class_names == ["new", "old", "wet"]
    expected = {0: [1, 0, 0], 1: [0, 0, 1], 2: [0, 1, 1]}
    assert targets(words) == {n: expected[n % 3] for n in range(NUM)}


def test_texts_are_classes_from_a_csv_file_and_split_evenly(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    table = rows(images)
    lines = [f"{path},{kind}" for path, kind in zip(table["path"], table["kind"], strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,kind", *lines, "missing.png,cat", ""]))
    with pytest.warns(UserWarning, match=r"skips .*missing\.png: No such file"):
        training, validation = data.image_table(
            tmp_path / "list.csv",
            "path",
            "kind",
            directory=images,
            image_size=SIZE,
            validation_split=0.25,
            subset="both",
        )
    assert training.class_indices == {"cat": 0, "dog": 1, "eel": 2}
    assert np.bincount(validation.labels).tolist() == [1, 1, 1]
    assert targets(training) | targets(validation) == {n: n % 3 for n in range(NUM)}
    assert [file.reason for file in training.skipped] == ["No such file or directory"]


@pytest.mark.parametrize("in_table", [True, False])
def test_masks_lie_on_their_images_augmented_or_not(images: pathlib.Path, in_table: bool) -> None:
    options = {
        "image_size": SIZE,
        "batch_size": 4,
        "seed": 1,
        "mask_values": (0, 255),
        "augmentation": data.Augmentation(horizontal_flip=True, width_shift_range=0.3, fill_mode="nearest"),
    }
    if in_table:
        dataset = data.image_table(rows(images), "path", directory=images, mask_column="mask", **options)
    else:
        dataset = data.image_folder(images, masks=images.parent / "masks", **options)
    assert [(spec.shape, spec.dtype) for spec in dataset.batch_spec] == [
        ((4, *SIZE, 3), "float32"),
        ((4, *SIZE, 1), "uint8"),
    ]
    moved = 0
    for batch, masks in dataset:
        assert masks.dtype == np.uint8
        assert set(np.unique(masks)) <= {0, 1}
        white = batch[..., :1] > 200
        # A mask's edge lies where the image's does, to the pixel that interpolation blurs.
        assert (white != masks).mean() <= 0.11
        moved += sum(not mask[0, 0, 0] for mask in masks)
    assert 0 < moved < NUM


def test_training_on_masks(images: pathlib.Path) -> None:
    dataset = data.image_folder(
        images, masks=images.parent / "masks", image_size=SIZE, mask_values=[0, 255], batch_size=4
    )
    assert (dataset.class_names, dataset.num_samples) == ([], NUM)
    inputs = keras.Input((*SIZE, 3))
    outputs = keras.layers.Conv2D(2, 3, padding="same")(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = memfit.fit(model, dataset, validation_data=dataset, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()


def test_a_broken_mask_is_a_broken_file(images: pathlib.Path) -> None:
    masks = images.parent / "masks"
    (masks / "a" / "04.png").write_bytes(b"no image")
    (masks / "b" / "05.png").unlink()
    with pytest.warns(UserWarning, match=r"05\.png: it has no mask in"):
        dataset = data.image_folder(images, masks=masks, image_size=SIZE, mask_values=(0, 255), batch_size=4)
    with pytest.warns(UserWarning, match=r"04\.png: its mask .*04\.png cannot be read"):
        batches = list(dataset)
    assert sum(len(x) for x, _ in batches) == NUM - 1
    assert len(dataset.skipped) == 2


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("colour", {}, r"`label_column`: the table has no column 'colour'. It has: \['path', 'angle'"),
        (["kind", "red"], {}, "Several label columns must hold numbers"),
        ("kind", {"class_names": ["cat", "dog"]}, "holds 'eel', which is not among the classes"),
        ("kind", {"label_mode": "binary"}, "needs exactly two classes"),
        ("kind", {"directory": "nowhere"}, r"None of the 12 images of the table is there, such as 'nowhere"),
        ("kind", {"mask_column": "mask"}, "`label_column` or `mask_column`, not both"),
        ("kind", {"mask_values": (0, 1)}, "`mask_values` needs masks"),
    ],
)
def test_mistakes(images: pathlib.Path, label: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        load(images, label, **options)
