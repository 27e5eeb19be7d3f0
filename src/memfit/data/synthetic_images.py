"""A folder of drawn images in ten classes, for demos and tests: no download, seconds to make.

An image is one pattern (stripes, stars, rings, ...) of varying number, size, angle, colour and position, over colour
gradients, lit from one side, with grain, saved as JPEG. Colour hints at the class and does not give it away.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from memfit import errors
from memfit.data.pipeline_options import usable_cores


def write_image_folder(
    directory: str | os.PathLike[str],
    *,
    num_images: int = 3000,
    num_classes: int = 10,
    image_size: tuple[int, int] = (200, 180),
    seed: int = 0,
) -> pathlib.Path:
    """Writes JPEG images into one sub-folder a class, named after what is drawn.

    Args:
        directory: A folder to make, or an empty one.
        num_images: How many, spread evenly over the classes.
        num_classes: From 1 to 10, the first of them in alphabetical order.
        image_size: (height, width) in pixels, about: sides vary by a fifth.
        seed: The images are a function of it and of these arguments.

    Returns:
        The folder.

    Raises:
        ArgumentError: An argument cannot work, or the folder holds something.

    Example:
        >>> import tempfile
        >>> folder = write_image_folder(tempfile.mkdtemp(), num_images=6, num_classes=3)
        >>> sorted(path.name for path in folder.iterdir()), len(list(folder.glob("*/*.jpg")))
        (['checkerboards', 'circles', 'crosses'], 6)
    """
    folder = pathlib.Path(directory)
    _check(folder, num_images, num_classes, image_size)
    names = sorted(_DRAWN)[:num_classes]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)

    def write(index: int) -> None:
        name = names[index % num_classes]
        image = draw(name, image_size=image_size, rng=np.random.default_rng((seed, index)))
        image.save(folder / name / f"{name}-{index // num_classes:05d}.jpg", quality=88)

    with concurrent.futures.ThreadPoolExecutor(min(8, usable_cores())) as executor:
        for _ in executor.map(write, range(num_images), chunksize=1):
            pass
    return folder


def draw(name: str, *, image_size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """One RGB image of the class ``name``, its sides within a fifth of ``image_size``, (height, width)."""
    height, width = (max(8, round(side * rng.uniform(0.8, 1.2))) for side in image_size)
    mask = _DRAWN[name](width, height, rng).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    hue = sorted(_DRAWN).index(name) / len(_DRAWN) + rng.normal(0, 0.045)
    picture = _gradients(
        width, height, _colors(rng, rng.uniform(), spread=0.12, saturation=(0.05, 0.4), brightness=0.5)
    )
    pattern = _gradients(width, height, _colors(rng, hue, spread=0.04, saturation=(0.35, 0.85), brightness=0.8))
    opacity = rng.uniform(0.75, 1)
    picture.paste(pattern, mask=mask.point(lambda level: level * opacity))
    return _lit(picture, rng)


def _check(folder: pathlib.Path, num_images: int, num_classes: int, image_size: tuple[int, int]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.ArgumentError(
            f"`directory` must be new or an empty folder. Received: directory={str(folder)!r}. Name another."
        )
    if not 1 <= num_classes <= len(_DRAWN):
        raise errors.ArgumentError(
            f"`num_classes` must be from 1 to {len(_DRAWN)}. Received: num_classes={num_classes}"
        )
    if num_images < num_classes:
        raise errors.ArgumentError(
            f"`num_images` must be at least `num_classes`. Received: num_images={num_images}, num_classes={num_classes}"
        )
    if min(image_size) < 16:
        raise errors.ArgumentError(f"`image_size` must be at least (16, 16). Received: image_size={image_size}")


def _colors(
    rng: np.random.Generator, hue: float, *, spread: float, saturation: tuple[float, float], brightness: float
) -> np.ndarray:
    """Nine RGB colours around a hue from 0 to 1: uint8, shape (9, 3)."""
    hues = (hue + rng.normal(0, spread, 9)) % 1
    chroma = np.clip(rng.uniform(*saturation) + rng.normal(0, 0.08, 9), 0, 1)
    value = np.clip(brightness + rng.uniform(-0.2, 0.2) + rng.normal(0, 0.1, 9), 0.1, 1)
    sectors = np.abs((hues[:, None] * 6 + [0, 4, 2]) % 6 - 3) - 1
    channels = value[:, None] * (1 - chroma[:, None] * (1 - np.clip(sectors, 0, 1)))
    return (255 * channels).astype(np.uint8)


def _gradients(width: int, height: int, colors: np.ndarray) -> Image.Image:
    """Nine colours, blended over the picture."""
    return Image.fromarray(colors.reshape(3, 3, 3)).resize((width, height), Image.Resampling.BICUBIC)


def _lit(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with light from one side and the grain of a camera."""
    width, height = picture.size
    slope_x, slope_y = rng.normal(0, 0.2, 2)
    light = rng.uniform(0.8, 1.15) + (
        slope_x * np.linspace(-1, 1, width, dtype=np.float32)
        + slope_y * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    )
    # In 16-bit integers, light in steps of 1 / 128, because they take a third of the time of floats.
    gain = (light * 128).clip(0, 255).astype(np.uint16)[..., None]
    pixels = (np.asarray(picture) * gain >> 7).astype(np.int16)
    grain = int(rng.integers(6, 28))
    pixels += rng.integers(-grain, grain + 1, (height, width, 1), np.int8)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _waves(
    width: int, height: int, rng: np.random.Generator, shape: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Image.Image:
    """A pattern without end: ``shape`` says where it is above zero, of coordinates turned by a random angle."""
    angle = rng.uniform(0, math.pi)
    period = rng.uniform(0.1, 0.22) * min(width, height)
    x = (np.arange(width, dtype=np.float32) - rng.uniform(0, width)) * (2 * math.pi / period)
    y = ((np.arange(height, dtype=np.float32) - rng.uniform(0, height)) * (2 * math.pi / period))[:, None]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return Image.fromarray((shape(along, across) > 0).astype(np.uint8) * 255)


def _figures(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    sizes: tuple[float, float],
    counts: tuple[int, int],
    figure: Callable[[ImageDraw.ImageDraw, float, float, float, float], None],
) -> Image.Image:
    """Some figures at random places: ``figure(canvas, x, y, radius, angle)`` draws one.

    Args:
        width: Pixels.
        height: Pixels.
        rng: Where the variation comes from.
        sizes: Least and greatest radius, as a share of the shorter side.
        counts: Least and greatest number of figures.
        figure: Draws one figure in white.
    """
    mask = Image.new("L", (width, height))
    canvas = ImageDraw.Draw(mask)
    for _ in range(rng.integers(counts[0], counts[1] + 1)):
        radius = rng.uniform(*sizes) * min(width, height)
        figure(
            canvas, rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.85) * height, radius, rng.uniform(0, math.tau)
        )
    return mask


def _polygon(radii: tuple[float, ...]) -> Callable[[ImageDraw.ImageDraw, float, float, float, float], None]:
    """Draws the polygon whose corners lie at these shares of the radius, evenly around the middle."""

    def figure(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, angle: float) -> None:
        angles = [angle + math.tau * corner / len(radii) for corner in range(len(radii))]
        corners = [
            (x + radius * share * math.cos(turn), y + radius * share * math.sin(turn))
            for share, turn in zip(radii, angles, strict=True)
        ]
        canvas.polygon(corners, fill=255)

    return figure


def _disc(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, angle: float) -> None:
    canvas.circle((x, y), radius, fill=255)


def _ring(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, angle: float) -> None:
    canvas.circle((x, y), radius, outline=255, width=max(2, round(radius * 0.3)))


def _cross(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, angle: float) -> None:
    for turn in (angle, angle + math.pi / 2):
        step_x, step_y = radius * math.cos(turn), radius * math.sin(turn)
        canvas.line((x - step_x, y - step_y, x + step_x, y + step_y), fill=255, width=max(2, round(radius * 0.45)))


_DRAWN: dict[str, Callable[[int, int, np.random.Generator], Image.Image]] = {
    "checkerboards": lambda w, h, rng: _waves(w, h, rng, lambda u, v: np.sin(u / 2) * np.sin(v / 2)),
    "circles": lambda w, h, rng: _figures(w, h, rng, figure=_disc, sizes=(0.14, 0.3), counts=(1, 4)),
    "crosses": lambda w, h, rng: _figures(w, h, rng, figure=_cross, sizes=(0.16, 0.32), counts=(1, 4)),
    "rings": lambda w, h, rng: _figures(w, h, rng, figure=_ring, sizes=(0.14, 0.32), counts=(1, 4)),
    "spots": lambda w, h, rng: _figures(w, h, rng, figure=_disc, sizes=(0.02, 0.05), counts=(20, 50)),
    "squares": lambda w, h, rng: _figures(w, h, rng, figure=_polygon((1.0,) * 4), sizes=(0.16, 0.32), counts=(1, 4)),
    "stars": lambda w, h, rng: _figures(w, h, rng, figure=_polygon((1.0, 0.4) * 5), sizes=(0.16, 0.34), counts=(1, 4)),
    "stripes": lambda w, h, rng: _waves(w, h, rng, lambda u, v: np.sin(u)),
    "triangles": lambda w, h, rng: _figures(w, h, rng, figure=_polygon((1.0,) * 3), sizes=(0.16, 0.34), counts=(1, 4)),
    "waves": lambda w, h, rng: _waves(w, h, rng, lambda u, v: np.sin(u + 1.8 * np.sin(v / 2))),
}
