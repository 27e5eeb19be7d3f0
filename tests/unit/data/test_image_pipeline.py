"""``image_folder`` up to the point where it needs Keras: arguments, and that a mistake is found before Keras is."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from memfit import data, errors
from memfit.data import image_pipeline


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name / "1.png")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"label_mode": "sparse"}, "`label_mode` must be one of"),
        ({"label_mode": "binary"}, "exactly two classes.* with 3: .*class_names"),
        ({"validation_split": 0.2}, "belong together"),
        ({"validation_split": 0.01, "subset": "both"}, "leaves no samples for validation"),
        ({"class_names": ["a", "z"]}, r"\['z'\] do not exist"),
        ({"directory": 3}, "`directory` must be a path"),
        ({"directory": b"images"}, "`directory` must be a path"),
        ({"directory": "no/such/folder"}, "does not exist"),
    ],
)
def test_mistakes(folder: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        data.image_folder(**{"directory": folder, **options})


def test_a_mistake_is_found_and_images_are_scanned_without_keras(folder: pathlib.Path) -> None:
    program = f"""
import sys
import memfit.data
assert "image_folder" in dir(memfit.data)
try:
    memfit.data.image_folder({str(folder)!r}, label_mode="binary")
except memfit.errors.ArgumentError:
    pass
else:
    raise AssertionError("no error")
loaded = {{"keras", "tensorflow", "jax", "torch"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", "import memfit.errors\n" + program], check=True, timeout=120)


def test_no_other_names() -> None:
    assert data.image_folder is image_pipeline.image_folder
    with pytest.raises(AttributeError, match="image_file"):
        data.image_file  # noqa: B018


def test_every_file_broken_is_an_error_before_training(folder: pathlib.Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(errors.MemfitError, match=r"3 of 3 files cannot be read, and none is left"):
        data.image_folder(folder)


def test_too_many_empty_files(folder: pathlib.Path) -> None:
    (folder / "a" / "2.png").touch()
    with (
        pytest.warns(UserWarning, match=r"memfit skips .*2\.png: the file is empty"),
        pytest.raises(errors.MemfitError, match=r"1 of 4 files .*max_broken=0"),
    ):
        data.image_folder(folder, max_broken=0)
