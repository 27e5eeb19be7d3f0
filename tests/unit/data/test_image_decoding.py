"""Decoding against Pillow used in the plainest way, and the engines against each other."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memfit.data import image_decoding
from memfit.data.image_decoding import ImageReader, UnreadableImageError
from memfit.data.image_options import ImageOptions

HAS = {
    name: image_decoding.importlib.util.find_spec(name) is not None  # type: ignore[attr-defined]
    for name in ("simplejpeg", "cv2")
}
ENGINES = [
    pytest.param(
        simplejpeg, opencv, id=f"{'simplejpeg' if simplejpeg else 'pillow'}-{'opencv' if opencv else 'pillow'}"
    )
    for simplejpeg in (False, True)
    for opencv in (False, True)
    if (HAS["simplejpeg"] or not simplejpeg) and (HAS["cv2"] or not opencv)
]


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Something like a photo: smooth shapes, with edges and grain."""
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    layers = []
    for _ in range(channels):
        wave = np.sin(x / rng.uniform(8, 40) + rng.uniform(0, 6)) + np.sin(y / rng.uniform(8, 40))
        disc = ((x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2) < (min(width, height) / 4) ** 2
        layers.append(128 + 40 * wave + 30 * disc + rng.normal(0, 4, (height, width)))
    pixels = np.stack(layers, -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)


def saved(folder: pathlib.Path, image: Image.Image, name: str, **options: Any) -> str:
    path = folder / name
    image.save(path, **options)
    return str(path)


def read(path: str, *, engine: tuple[bool, bool] = (False, False), **options: Any) -> np.ndarray:
    reader = ImageReader(ImageOptions(**options), with_simplejpeg=engine[0], with_opencv=engine[1])
    out = np.full(reader.options.image_shape, np.nan, np.float32)
    reader.read(path, out)
    return out


def reference(path: str, size: tuple[int, int], mode: str = "RGB") -> np.ndarray:
    """Decoded in full and resized with an antialiasing filter."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert(mode).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)
    return pixels.reshape(*size, -1)


@pytest.mark.parametrize(("simplejpeg", "opencv"), ENGINES)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.gif"])
@pytest.mark.parametrize("size", [(97, 211), (260, 300), (617, 450), (64, 700)], ids=str)
def test_every_format_is_near_the_antialiased_reference(
    tmp_path: pathlib.Path, name: str, size: tuple[int, int], simplejpeg: bool, opencv: bool
) -> None:
    lossless = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, photo(size[1], size[0]), name, **lossless)
    pixels = read(path, engine=(simplejpeg, opencv), image_size=(100, 120))
    difference = np.abs(pixels - reference(path, (100, 120)))
    assert difference.mean() < 4
    assert pixels.dtype == np.float32


@pytest.mark.parametrize(("simplejpeg", "opencv"), [engine for engine in ENGINES if any(engine.values)])
@pytest.mark.parametrize("color_mode", ["rgb", "grayscale", "rgba"])
@pytest.mark.parametrize(
    ("interpolation", "mean", "most"), [("bilinear", 0.7, 2), ("nearest", 0, 0), ("bicubic", 1.5, 25)]
)
def test_engines_agree(
    tmp_path: pathlib.Path,
    color_mode: str,
    interpolation: str,
    mean: float,
    most: float,
    simplejpeg: bool,
    opencv: bool,
) -> None:
    paths = [
        saved(tmp_path, photo(width, height), f"{width}.jpg", quality=90, progressive=width == 333)
        for width, height in [(180, 200), (500, 375), (1000, 40), (333, 1700), (30, 20), (120, 100)]
    ]
    paths += [saved(tmp_path, photo(420, 333, "RGBA"), "a.png"), saved(tmp_path, photo(300, 90, "L"), "grey.jpg")]
    for path in paths:
        options = {"image_size": (100, 120), "color_mode": color_mode, "interpolation": interpolation}
        difference = np.abs(read(path, engine=(simplejpeg, opencv), **options) - read(path, **options))
        assert difference.mean() <= mean, path
        assert difference.max() <= most, path


@pytest.mark.parametrize(("simplejpeg", "opencv"), ENGINES)
def test_an_image_of_the_right_size_is_not_touched(tmp_path: pathlib.Path, simplejpeg: bool, opencv: bool) -> None:
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path, photo(120, 100), name)
        pixels = read(path, engine=(simplejpeg, opencv), image_size=(100, 120))
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_a_jpeg_is_shrunk_while_it_is_decoded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    converted = image_decoding._converted
    monkeypatch.setattr(
        image_decoding, "_converted", lambda image, mode: decoded.append(image.size) or converted(image, mode)
    )
    read(saved(tmp_path, photo(1000, 900), "a.jpg"), image_size=(100, 120))
    assert decoded == [(125, 113)]


def test_fine_structure_is_averaged_not_sampled(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 800)).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "noise.png")
    pixels = read(path, image_size=(100, 100), color_mode="grayscale")
    # The mean of 64 values varies by an eighth of what one does, 74; four of them, as sampling takes, by a half.
    assert pixels.std() < 12


def test_nearest_keeps_values(tmp_path: pathlib.Path) -> None:
    mask = (np.indices((90, 90)).sum(0) // 30 % 2 * 200).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(mask), "mask.png")
    pixels = read(path, image_size=(33, 20), color_mode="grayscale", interpolation="nearest")
    assert set(np.unique(pixels)) == {0, 200}


def test_rescale(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, photo(80, 60), "a.png")
    plain = read(path, image_size=(30, 30))
    np.testing.assert_allclose(read(path, image_size=(30, 30), rescale=1 / 255), plain / 255, rtol=1e-6)
    assert plain.max() > 1


def test_sixteen_bits_become_eight(tmp_path: pathlib.Path) -> None:
    deep = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    path = saved(tmp_path, Image.fromarray(deep), "deep.png")
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    for color_mode in ("grayscale", "rgb"):
        pixels = read(path, image_size=(16, 16), color_mode=color_mode)
        np.testing.assert_array_equal(pixels[..., 0], deep // 256)


def test_palettes_and_alpha(tmp_path: pathlib.Path) -> None:
    red = Image.new("RGBA", (8, 8), (200, 10, 20, 100))
    rgba = saved(tmp_path, red, "rgba.png")
    assert read(rgba, image_size=(8, 8))[0, 0].tolist() == [200, 10, 20]  # Dropped, not blended.
    assert read(rgba, image_size=(4, 3), color_mode="rgba")[0, 0].tolist() == [200, 10, 20, 100]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    indexed = saved(tmp_path, palette, "palette.png")
    transparent = saved(tmp_path, palette, "transparent.png", transparency=1)
    assert read(indexed, image_size=(4, 4))[0, 0].tolist() == [10, 20, 30]
    assert read(indexed, image_size=(4, 4), color_mode="rgba")[0, 0].tolist() == [10, 20, 30, 255]
    assert read(transparent, image_size=(4, 4), color_mode="rgba")[0, 0].tolist() == [10, 20, 30, 0]
    one_bit = saved(tmp_path, Image.new("1", (8, 8), 1), "bit.png")
    assert read(one_bit, image_size=(8, 8))[0, 0].tolist() == [255, 255, 255]
    grey_alpha = saved(tmp_path, Image.new("LA", (8, 8), (90, 7)), "la.png")
    assert read(grey_alpha, image_size=(8, 8))[0, 0].tolist() == [90, 90, 90]


@pytest.mark.parametrize(("simplejpeg", "opencv"), ENGINES)
def test_cmyk_and_grey_jpeg(tmp_path: pathlib.Path, simplejpeg: bool, opencv: bool) -> None:
    cmyk = saved(tmp_path, photo(200, 200).convert("CMYK"), "cmyk.jpg", quality=95)
    pixels = read(cmyk, engine=(simplejpeg, opencv), image_size=(100, 100))
    assert np.abs(pixels - reference(cmyk, (100, 100))).mean() < 4
    grey = saved(tmp_path, photo(150, 150, "L"), "grey.jpg")
    pixels = read(grey, engine=(simplejpeg, opencv), image_size=(100, 100))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_the_first_frame_of_an_animation(tmp_path: pathlib.Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert read(path, image_size=(8, 8))[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize(("simplejpeg", "opencv"), ENGINES)
def test_orientation_is_ignored_as_in_keras(tmp_path: pathlib.Path, simplejpeg: bool, opencv: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(120, 100)
    turned = read(saved(tmp_path, image, "turned.jpg", exif=exif), engine=(simplejpeg, opencv), image_size=(100, 120))
    plain = read(saved(tmp_path, image, "plain.jpg"), engine=(simplejpeg, opencv), image_size=(100, 120))
    np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize(("simplejpeg", "opencv"), ENGINES)
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "gif"])
def test_damage_is_one_exception(tmp_path: pathlib.Path, extension: str, simplejpeg: bool, opencv: bool) -> None:
    buffer = io.BytesIO()
    photo(300, 200).save(buffer, {"jpg": "JPEG"}.get(extension, extension.upper()))
    whole = buffer.getvalue()
    path = tmp_path / f"broken.{extension}"
    for content in (b"", b"hello", whole[:10], whole[: len(whole) // 2], b"\xff\xd8\xff" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=r"\w"):
            read(str(path), engine=(simplejpeg, opencv), image_size=(50, 50))


def test_a_file_that_went_away(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UnreadableImageError, match="No such file"):
        read(str(tmp_path / "gone.jpg"), image_size=(50, 50))


def test_no_damage_is_found_where_memory_ran_out(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(image_decoding.Image, "open", fail)
    with pytest.raises(MemoryError):
        read(saved(tmp_path, photo(30, 20), "a.png"), image_size=(50, 50))


@pytest.mark.parametrize(("simplejpeg", "opencv"), ENGINES)
def test_most_bytes_follow_the_largest_image(tmp_path: pathlib.Path, simplejpeg: bool, opencv: bool) -> None:
    options = ImageOptions(image_size=(100, 100))
    small, large = saved(tmp_path, photo(200, 200), "s.png"), saved(tmp_path, photo(800, 700), "l.png")
    photo_path = saved(tmp_path, photo(800, 700), "l.jpg")
    progressive = saved(tmp_path, photo(800, 700), "p.jpg", progressive=True)
    taken = {}
    for path in (small, large, photo_path, progressive):
        by_reading, by_header = (ImageReader(options, with_simplejpeg=simplejpeg, with_opencv=opencv) for _ in range(2))
        by_reading.read(path, np.empty((100, 100, 3), np.float32))
        by_header.survey([path, str(tmp_path / "missing.jpg")])
        assert by_reading.most_bytes == by_header.most_bytes
        taken[path] = by_header.most_bytes
    assert taken[large] >= 4 * 800 * 700
    assert taken[photo_path] < taken[large] / 8
    assert taken[progressive] >= 6 * 800 * 700
    assert taken[small] < taken[large]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_progressive_file_is_told_by_its_frame_and_not_by_bytes_that_look_like_one(progressive: bool) -> None:
    buffer = io.BytesIO()
    photo(40, 30).save(buffer, "JPEG", progressive=progressive, exif=b"Exif\0\0\xff\xc2\xff\xc2")
    assert image_decoding._is_progressive(buffer.getvalue()) is progressive
    assert not image_decoding._is_progressive(buffer.getvalue()[:8])
