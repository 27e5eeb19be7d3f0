"""What happens to one image: drawn from its random generator, as a matrix and a table of levels."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from memfit.data.warping import opencv

if TYPE_CHECKING:
    from memfit.data.augmentation import Augmentation


@dataclasses.dataclass(frozen=True)
class Transform:
    """One drawn change of an image; the names are those of ``ImageDataGenerator.apply_transform``.

    Attributes:
        theta: Degrees of rotation.
        tx: Pixels along the width.
        ty: Pixels along the height.
        shear: Degrees of shear.
        zx: Zoom along the width; below 1 enlarges.
        zy: Zoom along the height.
        flip_horizontal: Whether left and right change places.
        flip_vertical: Whether top and bottom change places.
        channel_shift: Levels added, or None.
        brightness: Factor, or None.
    """

    theta: float = 0.0
    tx: float = 0.0
    ty: float = 0.0
    shear: float = 0.0
    zx: float = 1.0
    zy: float = 1.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    channel_shift: float | None = None
    brightness: float | None = None

    def matrix(self, image_shape: tuple[int, ...], *, axes_of_keras: bool = False) -> np.ndarray | None:
        """Where each pixel of the result comes from: float64 (2, 3), of (x, y); None where nothing moves."""
        height, width = image_shape[:2]
        turned, sheared = math.radians(self.theta), math.radians(self.shear)
        cosine, sine = math.cos(turned), math.sin(turned)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        shift = linear @ (self.tx, self.ty)
        linear = linear @ [[self.zx, -math.sin(sheared) * self.zy], [0.0, math.cos(sheared) * self.zy]]
        center = np.array([height, width] if axes_of_keras else [width, height]) / 2 - 0.5
        offset = center + shift - linear @ center
        # A flip afterwards takes its pixel from the other side.
        if self.flip_horizontal:
            offset = offset + linear[:, 0] * (width - 1)
            linear = linear * [-1.0, 1.0]
        if self.flip_vertical:
            offset = offset + linear[:, 1] * (height - 1)
            linear = linear * [1.0, -1.0]
        matrix = np.column_stack([linear, offset])
        return None if np.array_equal(matrix, np.eye(2, 3)) else matrix


def drawn(augmentation: Augmentation, image_shape: tuple[int, ...], rng: np.random.Generator) -> Transform:
    """What shall happen to one image of shape (height, width, ...)."""
    height, width = image_shape[:2]
    across = _shift(augmentation.width_shift_range, width, rng)
    down = _shift(augmentation.height_shift_range, height, rng)
    if augmentation.axes_of_keras:
        across, down = down, across
    low, high = augmentation.zoom_range
    zx, zy = (1.0, 1.0) if low == high == 1 else rng.uniform(low, high, 2).tolist()
    shift, brightness = augmentation.channel_shift_range, augmentation.brightness_range
    return Transform(
        theta=_either_side(augmentation.rotation_range, rng),
        tx=across,
        ty=down,
        shear=_either_side(augmentation.shear_range, rng),
        zx=zx,
        zy=zy,
        flip_horizontal=augmentation.horizontal_flip and rng.random() < 0.5,
        flip_vertical=augmentation.vertical_flip and rng.random() < 0.5,
        channel_shift=_either_side(shift, rng) if shift else None,
        brightness=None if brightness is None else rng.uniform(*brightness),
    )


def _either_side(most: float, rng: np.random.Generator) -> float:
    return rng.uniform(-most, most) if most else 0.0


def _shift(given: Any, side: int, rng: np.random.Generator) -> float:
    """Pixels to shift by: see ``Augmentation.width_shift_range``."""
    if isinstance(given, numbers.Real) and not given:
        return 0.0
    if isinstance(given, numbers.Real) and not isinstance(given, numbers.Integral):
        shift = rng.uniform(-float(given), float(given))
    else:
        shift = float(rng.choice(given)) * float(rng.choice([-1, 1]))
    return shift * side if np.max(given) < 1 else shift


def shifted_and_brightened(pixels: np.ndarray, transform: Transform, out: np.ndarray) -> None:
    """Adds the channel shift and multiplies with the brightness, as Keras and Pillow do, clipping included.

    Args:
        pixels: uint8, or float32 of any range; shape (height, width, channels).
        transform: What to do.
        out: float32, same shape.
    """
    if transform.channel_shift is None and transform.brightness is None:
        out[...] = pixels
        return
    if pixels.dtype != np.uint8:
        out[...] = _brightened(_shifted(pixels, pixels, transform), transform, pixels.shape[-1])
        return
    # Of 256 levels each is computed once.
    levels = np.arange(256, dtype=np.float32)
    shifted = _shifted(levels, pixels, transform)
    table = shifted if transform.brightness is None else _dimmed(shifted, transform.brightness)
    out[...] = looked_up(pixels, table)
    if pixels.shape[-1] == 4 and transform.brightness is not None:
        out[..., 3] = np.trunc(shifted)[pixels[..., 3]]


def looked_up(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[pixels]`` of a float32 table with 256 entries."""
    cv2 = opencv()
    if cv2 is None:
        return table[pixels]
    return cv2.LUT(np.ascontiguousarray(pixels), table).reshape(pixels.shape)


def _shifted(values: np.ndarray, image: np.ndarray, transform: Transform) -> np.ndarray:
    if transform.channel_shift is None:
        return values
    low, high = np.float32(image.min()), np.float32(image.max())
    return np.clip(values + np.float32(transform.channel_shift), low, high)


def _brightened(image: np.ndarray, transform: Transform, num_channels: int) -> np.ndarray:
    """A float image, made bytes on the way; one that leaves 0 to 255 is stretched to it and back."""
    if transform.brightness is None:
        return image
    low, high = float(image.min()), float(image.max())
    stretched = low < 0 or high > 255
    if stretched:
        image = (image - low) / ((high - low) or 1) * 255
    result = _dimmed(image, transform.brightness)
    if num_channels == 4:
        result[..., 3] = np.trunc(image[..., 3])
    return result / 255 * (high - low) + low if stretched else result


def _dimmed(values: np.ndarray, factor: float) -> np.ndarray:
    return np.trunc(np.clip(np.trunc(values) * np.float32(factor), 0, 255)).astype(np.float32)
