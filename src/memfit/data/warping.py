"""One affine warp of an image: OpenCV where it is installed, else numpy, with the same result to rounding."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import numpy as np

FILL_MODES = ("nearest", "constant", "reflect", "wrap")


@functools.cache
def opencv() -> Any | None:
    """OpenCV's module, or None where it is not installed."""
    return importlib.import_module("cv2") if importlib.util.find_spec("cv2") is not None else None


def warped(
    pixels: np.ndarray,
    matrix: np.ndarray,
    *,
    fill_mode: str,
    cval: float = 0.0,
    order: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The image whose pixel (x, y) is ``pixels`` at ``matrix @ (x, y, 1)``, as ``scipy.ndimage.affine_transform`` has it.

    Args:
        pixels: Shape (height, width) or (height, width, channels), of any dtype; uint8 and float32 are fast.
        matrix: float64 (2, 3).
        fill_mode: What lies outside: see ``FILL_MODES``. As in SciPy the first and the last pixel are one in "wrap".
        cval: The value of "constant"; one that the dtype does not hold makes the result float32.
        order: 1 for bilinear, 0 for nearest.
        out: Where the result goes: of the same shape and dtype as ``pixels``, contiguous. A new array if left out.

    Example:
        >>> shift = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> warped(np.array([[1, 2, 3]], np.uint8), shift, fill_mode="constant")
        array([[2, 3, 0]], dtype=uint8)
    """
    outside = None
    if fill_mode == "constant":
        outside = _outside(matrix, *pixels.shape[:2])
        if outside.any() and np.asarray(cval).astype(pixels.dtype) != cval:
            pixels = pixels.astype(np.float32)
    result = np.empty(pixels.shape, pixels.dtype) if out is None else out
    # OpenCV has no "wrap" like SciPy's, and rounds halves otherwise.
    with_opencv = opencv() is not None and order == 1 and pixels.dtype in (np.uint8, np.float32) and fill_mode != "wrap"
    (_with_opencv if with_opencv else _with_numpy)(pixels, matrix, fill_mode, order, result)
    if outside is not None:
        result[outside] = cval
    return result


def _with_opencv(pixels: np.ndarray, matrix: np.ndarray, fill_mode: str, order: int, out: np.ndarray) -> None:
    cv2 = opencv()
    assert cv2 is not None
    height, width = pixels.shape[:2]
    border = cv2.BORDER_REFLECT if fill_mode == "reflect" else cv2.BORDER_REPLICATE
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = np.ascontiguousarray(pixels)
    result = cv2.warpAffine(pixels, matrix, (width, height), dst=out, flags=flags, borderMode=border)
    if not np.may_share_memory(result, out):
        out[...] = result.reshape(out.shape)


def _with_numpy(pixels: np.ndarray, matrix: np.ndarray, fill_mode: str, order: int, out: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    x, y = _sources(matrix, height, width)
    x, y = _inside(x, width, fill_mode), _inside(y, height, fill_mode)
    if order == 0:
        out[...] = pixels[np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)]
        return
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    over, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    if pixels.ndim == 3:
        over, down = over[..., None], down[..., None]
    upper = pixels[top, left] * (1 - over) + pixels[top, right] * over
    lower = pixels[bottom, left] * (1 - over) + pixels[bottom, right] * over
    result = upper * (1 - down) + lower * down
    out[...] = np.rint(result) if pixels.dtype.kind in "ui" else result


def _sources(matrix: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels come from: x and y, float64, shape (height, width)."""
    columns, rows = np.arange(width), np.arange(height)[:, None]
    x, y = (a * columns + (b * rows + c) for a, b, c in matrix)
    return x, y


def _outside(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    # To within rounding: half of a mirrored image's edge would be outside of it otherwise.
    x, y = np.round(_sources(matrix, height, width), 9)
    return (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)


def _inside(coordinates: np.ndarray, side: int, fill_mode: str) -> np.ndarray:
    """Coordinates folded into the image."""
    if fill_mode == "reflect":
        folded = np.mod(coordinates + 0.5, 2 * side)
        coordinates = np.minimum(folded, 2 * side - folded) - 0.5
    elif fill_mode == "wrap" and side > 1:
        beyond = (coordinates < 0) | (coordinates > side - 1)
        coordinates = np.where(beyond, np.mod(coordinates, side - 1), coordinates)
    return np.clip(coordinates, 0, side - 1)
