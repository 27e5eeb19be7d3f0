from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from memfit import errors
from memfit.data import synthetic_images
from memfit.data.synthetic_images import write_image_folder


def test_the_folder_holds_what_was_asked_for(tmp_path: pathlib.Path) -> None:
    folder = write_image_folder(tmp_path / "new" / "images", num_images=33, num_classes=10, image_size=(100, 80))
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 10
    assert {"circles", "stripes", "stars"} <= set(names)
    files = sorted(folder.glob("*/*.jpg"))
    assert len(files) == 33
    assert {len(list(path.iterdir())) for path in folder.iterdir()} == {3, 4}
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB"
            sizes.add(image.size)
    assert len(sizes) > 20
    assert all(64 <= width <= 96 and 80 <= height <= 120 for width, height in sizes)


def test_images_are_a_function_of_the_seed(tmp_path: pathlib.Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        folder = write_image_folder(tmp_path / name, num_images=6, num_classes=3, seed=seed)
        return {path.name: path.read_bytes() for path in folder.glob("*/*.jpg")}

    first, same, other = written("a", 1), written("b", 1), written("c", 2)
    assert first == same
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize("name", sorted(synthetic_images._DRAWN))
def test_every_class_varies_and_shows_something(name: str) -> None:
    images = [
        synthetic_images.draw(name, image_size=(64, 64), rng=np.random.default_rng(seed)).resize((32, 32))
        for seed in range(8)
    ]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    assert pixels.std(axis=(1, 2, 3)).min() > 5
    assert pixels.std(axis=0).mean() > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 11}, "`num_classes` must be from 1 to 10"),
        ({"num_classes": 0}, "`num_classes` must be from 1 to 10"),
        ({"num_images": 5}, "`num_images` must be at least"),
        ({"image_size": (8, 100)}, "`image_size` must be at least"),
    ],
)
def test_what_cannot_work(tmp_path: pathlib.Path, options: dict, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        write_image_folder(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(errors.ArgumentError, match="must be new or an empty folder"):
        write_image_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
