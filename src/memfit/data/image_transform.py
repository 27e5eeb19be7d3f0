"""What happens to one image: drawn from its random generator, as a matrix and changes of its levels."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

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
        # The rotation times [[zx, -sin(shear) zy], [0, cos(shear) zy]], in plain numbers: numpy takes many times as long.
        across, down = -math.sin(sheared) * self.zy, math.cos(sheared) * self.zy
        xx, xy = cosine * self.zx, cosine * across - sine * down
        yx, yy = sine * self.zx, sine * across + cosine * down
        sides = (height, width) if axes_of_keras else (width, height)
        center_x, center_y = sides[0] / 2 - 0.5, sides[1] / 2 - 0.5
        x = center_x + cosine * self.tx - sine * self.ty - xx * center_x - xy * center_y
        y = center_y + sine * self.tx + cosine * self.ty - yx * center_x - yy * center_y
        # A flip afterwards takes its pixel from the other side.
        if self.flip_horizontal:
            x, y, xx, yx = x + xx * (width - 1), y + yx * (width - 1), -xx, -yx
        if self.flip_vertical:
            x, y, xy, yy = x + xy * (height - 1), y + yy * (height - 1), -xy, -yy
        if (xx, xy, x, yx, yy, y) == (1, 0, 0, 0, 1, 0):
            return None
        return np.array(((xx, xy, x), (yx, yy, y)))


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


def shift_and_brighten(image: np.ndarray, transform: Transform) -> None:
    """Adds the channel shift and multiplies with the brightness in place, as Keras and Pillow do, clipping included.

    Args:
        image: float32, shape (height, width, channels); of four channels the last is alpha, which is not brightened.
        transform: What to do.
    """
    if transform.channel_shift is not None:
        np.clip(image + np.float32(transform.channel_shift), image.min(), image.max(), out=image)
    if transform.brightness is None:
        return
    # Keras makes bytes of the image on the way; one that leaves 0 to 255 is stretched to it and back.
    low, high = float(image.min()), float(image.max())
    stretched = low < 0 or high > 255
    if stretched:
        image[...] = (image - low) / ((high - low) or 1) * 255
    np.trunc(image, out=image)
    colors = image[..., :3] if image.shape[-1] == 4 else image
    colors *= np.float32(transform.brightness)
    np.trunc(np.clip(colors, 0, 255, out=colors), out=colors)
    if stretched:
        image[...] = image / 255 * (high - low) + low
