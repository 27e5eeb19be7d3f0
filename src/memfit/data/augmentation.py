"""Random changes of images under the names of ``ImageDataGenerator``, as one record that says what may happen.

What does happen to one image is a ``Transform``, drawn from the sample's own random generator (``image_transform.py``); it
is applied with one affine warp (``warping.py``), so that pixels are interpolated once and not once an operation.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import image_transform
from memfit.data.image_transform import Transform
from memfit.data.warping import FILL_MODES, warped

MOST_WHITENED_VALUES = 4096
"""Values of an image that ZCA whitening is computed for: its matrix has the square of them."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Augmentation:
    """What may happen to an image, with the names and meanings of Keras' ``ImageDataGenerator``.

    Pass it to ``memfit.data.image_folder(augmentation=...)``. What an image becomes is a function of the data set's seed,
    the epoch and the sample alone: it does not depend on the number of threads, and differs from epoch to epoch.

    Attributes:
        rotation_range: Degrees, to either side.
        width_shift_range: Below 1 a share of the width; from 1 on pixels; an integer n: whole pixels below n; a sequence:
            one of its values; to either side.
        height_shift_range: The same along the height.
        shear_range: Degrees, to either side.
        zoom_range: z for [1 - z, 1 + z], or (least, greatest), for each axis by itself. Below 1 enlarges.
        channel_shift_range: Levels of 255 added to all channels, to either side.
        brightness_range: (least, greatest) factor.
        horizontal_flip: Whether half of the images are mirrored left to right.
        vertical_flip: Whether half of the images are mirrored top to bottom.
        fill_mode: What lies outside of an image: "nearest", "constant", "reflect" or "wrap".
        cval: The value of "constant".
        interpolation_order: 1 for bilinear, 0 for the nearest pixel.
        preprocessing_function: Called with each changed image, float32 (height, width, channels); returns one of that shape.
        rescale: Factor for the values, after ``preprocessing_function``.
        samplewise_center: Whether each image's mean is subtracted.
        samplewise_std_normalization: Whether each image is divided by its standard deviation; implies the centre.
        featurewise_center: Whether the data's mean is subtracted; ``fitted`` finds it.
        featurewise_std_normalization: Whether to divide by the data's standard deviation; implies the centre.
        zca_whitening: Whether images are whitened, for small ones; implies the centre, and no division.
        zca_epsilon: Added to the singular values.
        mean: Found by ``fitted``: of each channel.
        std: Found by ``fitted``: of each channel.
        zca_matrix: Found by ``fitted``.
        axes_of_keras: Whether axes are as in Keras' own class: there ``height_shift_range`` moves an image along its
            width, by a share of the height, and images turn around (height, width) / 2 read as (x, y).

    Raises:
        ArgumentError: A value cannot work.

    Example:
        >>> augmentation = Augmentation(rotation_range=20, horizontal_flip=True, rescale=1 / 255)
        >>> image = np.full((8, 8, 3), 255, np.uint8)
        >>> changed = augmentation(image, np.random.default_rng(0))
        >>> changed.shape, str(changed.dtype), float(changed.max())
        ((8, 8, 3), 'float32', 1.0)
    """

    rotation_range: float = 0.0
    width_shift_range: Any = 0.0
    height_shift_range: Any = 0.0
    shear_range: float = 0.0
    zoom_range: Any = 0.0
    channel_shift_range: float = 0.0
    brightness_range: Any = None
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill_mode: str = "nearest"
    cval: float = 0.0
    interpolation_order: int = 1
    preprocessing_function: Callable[[np.ndarray], np.ndarray] | None = None
    rescale: float | None = None
    samplewise_center: bool = False
    samplewise_std_normalization: bool = False
    featurewise_center: bool = False
    featurewise_std_normalization: bool = False
    zca_whitening: bool = False
    zca_epsilon: float = 1e-6
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    zca_matrix: np.ndarray | None = None
    axes_of_keras: bool = False

    def __post_init__(self) -> None:
        for name in ("rotation_range", "shear_range", "channel_shift_range", "cval"):
            if not _is_number(getattr(self, name)):
                raise errors.ArgumentError(f"`{name}` must be a number. Received: {name}={getattr(self, name)!r}")
        for name in ("width_shift_range", "height_shift_range"):
            _check_shift(name, getattr(self, name))
        if self.fill_mode not in FILL_MODES:
            raise errors.ArgumentError(
                f"`fill_mode` must be one of {FILL_MODES}. Received: fill_mode={self.fill_mode!r}"
            )
        if self.interpolation_order not in (0, 1):
            raise errors.ArgumentError(
                "`interpolation_order` must be 0 (nearest) or 1 (bilinear). "
                f"Received: interpolation_order={self.interpolation_order!r}"
            )
        zoom = self.zoom_range
        pair = (1 - zoom, 1 + zoom) if _is_number(zoom) else _pair("zoom_range", zoom)
        if not pair[0] > 0 or pair[1] < pair[0]:
            raise errors.ArgumentError(
                f"`zoom_range` must be a share below 1, or (least, greatest) above 0. Received: zoom_range={zoom!r}"
            )
        object.__setattr__(self, "zoom_range", pair)
        if self.brightness_range is not None:
            object.__setattr__(self, "brightness_range", _pair("brightness_range", self.brightness_range))
        implied = {
            "samplewise_center": self.samplewise_center or self.samplewise_std_normalization,
            "featurewise_center": self.featurewise_center or self.featurewise_std_normalization or self.zca_whitening,
            "featurewise_std_normalization": self.featurewise_std_normalization and not self.zca_whitening,
        }
        for name, value in implied.items():
            object.__setattr__(self, name, value)

    @property
    def without_randomness(self) -> Augmentation:
        """Only what happens to every image alike, which is rescaling, normalization, the preprocessing function."""
        return dataclasses.replace(
            self,
            rotation_range=0.0,
            width_shift_range=0.0,
            height_shift_range=0.0,
            shear_range=0.0,
            zoom_range=0.0,
            channel_shift_range=0.0,
            brightness_range=None,
            horizontal_flip=False,
            vertical_flip=False,
        )

    @property
    def missing(self) -> str | None:
        """What must be found with ``fitted`` before images can be normalized, or None."""
        needed = {
            "mean": self.featurewise_center,
            "std": self.featurewise_std_normalization,
            "zca_matrix": self.zca_whitening,
        }
        return next((name for name, is_needed in needed.items() if is_needed and getattr(self, name) is None), None)

    def drawn(self, image_shape: tuple[int, ...], rng: np.random.Generator) -> Transform:
        """What shall happen to one image of shape (height, width, ...)."""
        return image_transform.drawn(self, image_shape, rng)

    def __call__(
        self, pixels: np.ndarray, rng: np.random.Generator | Transform, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """One image changed.

        Args:
            pixels: Values from 0 to 255: uint8 or float32, shape (height, width, channels). Not changed.
            rng: What the change is drawn from, or the change itself.
            out: float32, where the result goes; a new array if left out.
        """
        transform = rng if isinstance(rng, Transform) else self.drawn(pixels.shape, rng)
        result = np.empty(pixels.shape, np.float32) if out is None else out
        matrix = transform.matrix(pixels.shape, axes_of_keras=self.axes_of_keras)
        if matrix is None:
            result[...] = pixels
        else:
            # As floats: it takes no longer, and bytes would be rounded on the way.
            floats = _as_floats(pixels)
            order = self.interpolation_order
            warped(floats, matrix, fill_mode=self.fill_mode, cval=self.cval, order=order, out=result)
        image_transform.shift_and_brighten(result, transform)
        self.standardize(result)
        return result

    def mask(self, mask: np.ndarray, transform: Transform, *, outside: float = 0) -> np.ndarray:
        """A segmentation mask, (height, width) or (height, width, channels), moved as its image: no new values appear.

        Args:
            mask: Of any dtype.
            transform: What was drawn for its image.
            outside: The value outside of the mask where ``fill_mode`` is "constant".
        """
        matrix = transform.matrix(mask.shape, axes_of_keras=self.axes_of_keras)
        return mask if matrix is None else warped(mask, matrix, fill_mode=self.fill_mode, cval=outside, order=0)

    def standardize(self, image: np.ndarray) -> None:
        """Applies the preprocessing function, the factor and the normalizations to a float32 image in place.

        Raises:
            ArgumentError: The preprocessing function returned another shape, or ``fitted`` was not called.
        """
        if self.missing is not None:
            raise errors.ArgumentError(
                f"`{self.missing}` is not known yet, which the featurewise normalization needs. "
                "Use `augmentation.fitted(images)` in place of `augmentation`."
            )
        if self.preprocessing_function is not None:
            result = np.asarray(self.preprocessing_function(image))
            if result.shape != image.shape:
                raise errors.ArgumentError(
                    f"`preprocessing_function` must keep the shape of an image. Received: {result.shape} "
                    f"for an image of shape {image.shape}"
                )
            image[...] = result
        if self.rescale:
            image *= np.float32(self.rescale)
        if self.samplewise_center:
            image -= image.mean()
        if self.samplewise_std_normalization:
            image /= image.std() + 1e-6
        if self.featurewise_center:
            image -= self.mean
        if self.featurewise_std_normalization:
            assert self.std is not None
            image /= self.std + 1e-6
        if self.zca_whitening:
            image[...] = (image.reshape(-1) @ self.zca_matrix).reshape(image.shape)

    def fitted(self, images: np.ndarray | Iterable[np.ndarray]) -> Augmentation:
        """This augmentation with the mean, deviation and whitening of some images, which are gone through once.

        Args:
            images: One array of shape (num_images, height, width, channels), or batches of such, values from 0 to 255.

        Raises:
            ArgumentError: There are no images, or too large ones to whiten.
        """
        moments = _Moments(self.zca_whitening)
        for batch in [images] if isinstance(images, np.ndarray) else images:
            moments.add(np.asarray(batch, np.float64) * (self.rescale or 1.0))
        mean, std, matrix = moments.result(self.zca_epsilon)
        return dataclasses.replace(self, mean=mean, std=std, zca_matrix=matrix)


_kept = threading.local()
"""Of each thread: an array of floats for an image, because pages of a new one take longer than the conversion."""


def _as_floats(pixels: np.ndarray) -> np.ndarray:
    """The pixels as float32, good until the thread's next call."""
    floats = getattr(_kept, "floats", None)
    if floats is None or floats.shape != pixels.shape:
        floats = _kept.floats = np.empty(pixels.shape, np.float32)
    floats[...] = pixels
    return floats


class _Moments:
    """Sums over batches of images, from which the featurewise normalizations follow."""

    def __init__(self, whitening: bool) -> None:
        self._whitening = whitening
        self._num_images = self._num_pixels = 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0
        self._flat_sum: Any = 0.0
        self._products: Any = 0.0

    def add(self, batch: np.ndarray) -> None:
        if batch.ndim != 4 or not batch.size:
            raise errors.ArgumentError(
                "`images` must have shape (num_images, height, width, channels) and not be empty. "
                f"Received: an array of shape {batch.shape}"
            )
        self._num_images += len(batch)
        self._num_pixels += math.prod(batch.shape[:3])
        self._sum = self._sum + batch.sum(axis=(0, 1, 2))
        self._squares = self._squares + np.square(batch).sum(axis=(0, 1, 2))
        if self._whitening:
            flat = batch.reshape(len(batch), -1)
            if flat.shape[1] > MOST_WHITENED_VALUES:
                raise errors.ArgumentError(
                    f"`zca_whitening` is for images of at most {MOST_WHITENED_VALUES} values. "
                    f"Received: images of {flat.shape[1]} values. Use samplewise or featurewise normalization."
                )
            self._flat_sum = self._flat_sum + flat.sum(axis=0)
            self._products = self._products + flat.T @ flat

    def result(self, epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if not self._num_images:
            raise errors.ArgumentError("`images` is empty. Pass at least one image.")
        mean = self._sum / self._num_pixels
        std = np.sqrt(np.maximum(self._squares / self._num_pixels - mean**2, 0))
        shape = (1, 1, len(mean))
        matrix = self._whitening_matrix(mean, epsilon) if self._whitening else None
        return mean.reshape(shape).astype(np.float32), std.reshape(shape).astype(np.float32), matrix

    def _whitening_matrix(self, mean: np.ndarray, epsilon: float) -> np.ndarray:
        """From the eigenvectors of the centred products, which are the singular vectors of the centred images."""
        center = np.tile(mean, len(self._flat_sum) // len(mean))
        crossed = np.outer(center, self._flat_sum)
        products = self._products - crossed - crossed.T + self._num_images * np.outer(center, center)
        values, vectors = np.linalg.eigh(products)
        rank = min(self._num_images, len(values))
        values, vectors = np.sqrt(np.maximum(values[-rank:], 0)), vectors[:, -rank:]
        return ((vectors * (np.sqrt(self._num_images) / (values + epsilon))) @ vectors.T).astype(np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _pair(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_number(bound) for bound in value):
        raise errors.ArgumentError(f"`{name}` must be (least, greatest). Received: {name}={value!r}")
    return float(value[0]), float(value[1])


def _check_shift(name: str, value: Any) -> None:
    values = [value] if _is_number(value) else value
    if not isinstance(values, (Sequence, np.ndarray)) or not len(values) or not all(map(_is_number, values)):
        raise errors.ArgumentError(
            f"`{name}` must be a share, a number of pixels, or a sequence of numbers to choose from. "
            f"Received: {name}={value!r}"
        )
