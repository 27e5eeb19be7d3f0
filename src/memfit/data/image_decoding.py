"""From an image file to float32 pixels of one size, quickly.

A JPEG is shrunk while it is decoded, by the largest power of two that leaves it no smaller than asked for (libjpeg's
scaled decoding); other formats are shrunk by averaging whole blocks of pixels. What is left, less than a factor of two,
is interpolated. So no pixel of a large photo is decoded only to be thrown away, and fine structure is averaged instead
of aliased.

simplejpeg decodes and OpenCV resizes where they are installed, else Pillow does both, with the same pixels to a level
or two of 255 (``tests/unit/data/test_image_decoding.py`` holds the tolerances). As in Keras the orientation in a
photo's EXIF data is ignored, and an image's alpha is dropped for "rgb", not blended.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from memfit.data.augmentation import Augmentation
from memfit.data.image_options import ImageOptions
from memfit.data.image_transform import Transform

# The only place that knows how a damaged file shows itself. MemoryError is not among them: that file is not broken.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_MODE = {"grayscale": "L", "rgb": "RGB", "rgba": "RGBA"}
_PILLOW_FILTER = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_OPENCV_FILTER = {"nearest": "INTER_NEAREST_EXACT", "bilinear": "INTER_LINEAR", "bicubic": "INTER_CUBIC"}


class UnreadableImageError(Exception):
    """An image file cannot be decoded. The text says why. Never leaves the pipeline."""


class ImageReader:
    """Reads image files into rows of a batch. Safe to use from several threads.

    Args:
        options: Size, colours, interpolation and scale of what comes out.
        with_simplejpeg: Whether simplejpeg decodes JPEG files; None: if it is installed.
        with_opencv: Whether OpenCV resizes; None: if it is installed.

    Attributes:
        most_bytes: The most that decoding one of the files seen so far takes beside its row of the batch.
    """

    def __init__(
        self, options: ImageOptions, *, with_simplejpeg: bool | None = None, with_opencv: bool | None = None
    ) -> None:
        self.options = options
        self.most_bytes = 0
        self._mode = _MODE[options.color_mode]
        # "nearest" promises values that occur in the file, which averaging would not keep.
        self._shrinks = options.interpolation != "nearest"
        self._simplejpeg = _optional("simplejpeg", with_simplejpeg)
        self._resize = _resizer(options, _optional("cv2", with_opencv))
        # Formats are registered here, because Pillow's doing so on demand is not safe from several threads.
        Image.preinit()
        importlib.import_module("PIL.WebPImagePlugin")

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageReader, (self.options,)

    @property
    def engine(self) -> str:
        """What decodes JPEG files, for people."""
        return "simplejpeg" if self._simplejpeg else "Pillow"

    def read(self, path: str, out: np.ndarray) -> None:
        """Reads one file.

        Args:
            path: An image file.
            out: float32, shape ``options.image_shape``: gets values from 0 to 255 times ``options.rescale``.

        Raises:
            UnreadableImageError: The file is missing, damaged or no image; ``out`` may be partly written.
        """
        finish(self.pixels(path), out, options=self.options, change=drawn_change(self.options, (0,)))

    def pixels(self, path: str) -> np.ndarray:
        """One file's pixels, uint8, shape ``options.image_shape``, not to be changed.

        Raises:
            UnreadableImageError: The file is missing, damaged or no image.
        """
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise UnreadableImageError(_reason(error)) from error
        return self.decode(data)

    def decode(self, data: bytes) -> np.ndarray:
        """The pixels of what a file holds, as ``pixels`` gives them."""
        try:
            pixels = self._resize(self._decode(data))
        except DAMAGE as error:
            raise UnreadableImageError(_reason(error)) from error
        return pixels.reshape(self.options.image_shape)

    def survey(self, paths: Iterable[str]) -> None:
        """Raises ``most_bytes`` to what these files will take, from their headers alone; damaged ones are passed."""
        for path in paths:
            try:
                with Image.open(path, formats=_FORMATS) as image:
                    jpeg = image.format in ("JPEG", "MPO")
                    self._note(image.size, jpeg=jpeg, progressive=bool(image.info.get("progressive")))
            except DAMAGE:
                continue

    def _decode(self, data: bytes) -> Any:
        """A Pillow image or a uint8 array of shape (rows, columns, channels), less than twice the wanted size."""
        if self._simplejpeg and data[:3] == b"\xff\xd8\xff":
            pixels = self._decode_jpeg(data)
            if pixels is not None:
                return self._reduced(pixels)
        height, width = self.options.image_size
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        jpeg = image.format in ("JPEG", "MPO")
        self._note(image.size, jpeg=jpeg, progressive=bool(image.info.get("progressive")))
        if self._shrinks and jpeg:
            image.draft(self._mode, (width, height))
        image.load()
        return self._reduced(_converted(image, self._mode))

    def _decode_jpeg(self, data: bytes) -> np.ndarray | None:
        """simplejpeg's pixels, or None where Pillow shall decide: CMYK, and files with any kind of damage."""
        try:
            rows, columns, colorspace, _ = self._simplejpeg.decode_jpeg_header(data)
            if colorspace in ("CMYK", "YCCK"):
                return None
            scale = self._jpeg_scale(rows, columns)
            self._note((columns, rows), jpeg=True, progressive=_is_progressive(data))
            space = {"L": "GRAY"}.get(self._mode, self._mode)
            return self._simplejpeg.decode_jpeg(
                data, space, min_height=-(-rows // scale), min_width=-(-columns // scale)
            )
        except ValueError:
            return None

    def _jpeg_scale(self, rows: int, columns: int) -> int:
        """The power of two, 8 at most, that libjpeg divides both sides by: Pillow's rule for ``draft``."""
        if not self._shrinks:
            return 1
        height, width = self.options.image_size
        return max(scale for scale in (1, 2, 4, 8) if scale <= max(1, min(rows // height, columns // width)))

    def _reduced(self, image: Any) -> Any:
        """Whole blocks of pixels averaged, so that neither side is twice as large as wanted."""
        columns, rows = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
        height, width = self.options.image_size
        factor = (max(1, columns // width), max(1, rows // height))
        if factor == (1, 1) or not self._shrinks:
            return image
        return _by_band(_as_image(image), lambda band: band.reduce(factor))

    def _note(self, size: tuple[int, int], *, jpeg: bool, progressive: bool) -> None:
        """Counts what an image of ``size`` (columns, rows) takes while it is decoded."""
        columns, rows = size
        height, width = self.options.image_size
        decoded = columns * rows
        if jpeg:
            decoded = decoded // self._jpeg_scale(rows, columns) ** 2 + rows + columns
        # Pillow's image (4 bytes a pixel), converted (4), as an array (4); the coefficients are 3 times 2 bytes. The
        # compressed file is in memory, too, but smaller than its pixels.
        taken = 12 * decoded + (6 * columns * rows if progressive else 0) + 8 * height * width
        self.most_bytes = max(self.most_bytes, taken)


def drawn_change(options: ImageOptions, key: tuple[int, ...]) -> Transform | None:
    """What an augmentation of single images does to one of them: drawn from integers from 0. None without such."""
    if not isinstance(options.augmentation, Augmentation):
        return None
    return options.augmentation.drawn(options.image_shape, np.random.default_rng(key))


def finish(pixels: np.ndarray, out: np.ndarray, *, options: ImageOptions, change: Transform | None) -> None:
    """Changes and scales an image's pixels on their way into a batch.

    Args:
        pixels: As ``ImageReader.pixels`` returns them.
        out: float32, shape ``options.image_shape``.
        options: What to do with them.
        change: What ``drawn_change`` gave.
    """
    if change is not None:
        pixels = options.augmentation(pixels, change, out=out)
    if options.rescale is not None:
        np.multiply(pixels, np.float32(options.rescale), out=out)
    elif pixels is not out:
        out[...] = pixels


def _is_progressive(jpeg: bytes) -> bool:
    """Whether libjpeg keeps the coefficients of the whole image: SOF2 starts the frame. Goes from marker to marker."""
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker == 0xC2
        # Padding is one byte, any other segment as long as it says.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return False


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP or GIF image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _optional(module: str, wanted: bool | None) -> Any:
    if wanted is False or (wanted is None and importlib.util.find_spec(module) is None):
        return None
    return importlib.import_module(module)


def _resizer(options: ImageOptions, opencv: Any) -> Callable[[Any], np.ndarray]:
    """The function that interpolates an image to the wanted size and returns a uint8 array."""
    height, width = options.image_size

    def with_opencv(image: Any) -> np.ndarray:
        pixels = np.asarray(image)
        if pixels.shape[:2] == (height, width):
            return pixels
        return opencv.resize(
            pixels, (width, height), interpolation=getattr(opencv, _OPENCV_FILTER[options.interpolation])
        )

    def with_pillow(image: Any) -> np.ndarray:
        image = _as_image(image)
        if image.size == (width, height):
            return np.asarray(image)
        # `transform`, because `resize` would smooth what was smoothed already, and differ from OpenCV.
        steps = (image.width / width, 0, 0, 0, image.height / height, 0)
        resample = _PILLOW_FILTER[options.interpolation]
        return np.asarray(
            _by_band(image, lambda band: band.transform((width, height), Image.Transform.AFFINE, steps, resample))
        )

    return with_pillow if opencv is None else with_opencv


def _as_image(image: Any) -> Image.Image:
    if not isinstance(image, np.ndarray):
        return image
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)


def _by_band(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """``change`` applied; to each channel by itself where Pillow would weigh colours by alpha, which Keras does not."""
    if image.mode != "RGBA":
        return change(image)
    return Image.merge("RGBA", [change(band) for band in image.split()])


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The image in ``mode``: "L", "RGB" or "RGBA"."""
    if image.mode.startswith("I"):
        # 16 bits: Pillow's own conversion would clip every value above 255 to white.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("P", "PA"):
        transparent = mode == "RGBA" and "transparency" in image.info
        image = image.convert("RGBA" if transparent or image.mode == "PA" else "RGB")
    return image if image.mode == mode else image.convert(mode)
