"""The two moments of Adam in one byte an entry: codes in blocks, each with a scale. Arithmetic on any arrays.

Dettmers et al. 2022, arXiv:2110.02861, with two changes: a positive second moment never becomes zero, and a first moment whose
gradient is exactly zero is rounded towards zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memfit.levers.quantile_code import SIGNED, UNSIGNED, DynamicCode

BLOCK = 256
"""Entries that share a scale."""

SMALLEST = 4096
"""Entries of the smallest tensor whose moments are kept in 8 bits."""

CHUNK = 2**20
"""Entries of a tensor that are updated at once, about; a tensor is in at most ``_MOST_CHUNKS`` parts."""

_MOST_CHUNKS = 16


def is_coded(shape: Any) -> bool:
    """Whether the moments of a tensor of this shape are kept in 8 bits."""
    return math.prod(shape) >= SMALLEST


def state_bytes(shape: Any) -> int:
    """Bytes of both moments of a tensor.

    Example:
        >>> round(state_bytes((1000, 1000)) / 1e6, 2)
        2.03
    """
    size = math.prod(shape)
    return 2 * size + 2 * 4 * num_blocks(size) if is_coded(shape) else 8 * size


def num_blocks(size: int) -> int:
    """Blocks of a tensor of so many entries; the last may be short."""
    return -(-size // BLOCK)


def strides(shape: tuple[int, ...]) -> list[int] | None:
    """How many leading entries a chunk takes of a weight, and of the codes and the scales of each moment.

    A chunk is of whole rows and of whole blocks. None where one chunk takes all.

    Example:
        >>> strides((5000, 1000))
        [1024, 1024000, 4000, 1024000, 4000]
    """
    size, row = math.prod(shape), math.prod(shape[1:])
    unit = BLOCK // math.gcd(row, BLOCK)
    rows = unit * max(1, max(CHUNK, -(-size // _MOST_CHUNKS)) // (unit * row))
    if rows >= shape[0]:
        return None
    return [rows, *2 * [rows * row, rows * row // BLOCK]]


def in_blocks(tensor: Any, xp: Any) -> Any:
    """A tensor's entries as ``(num_blocks, 256)``, the last block filled with zeros."""
    size = math.prod(tensor.shape)
    flat = xp.reshape(tensor, (-1,))
    missing = num_blocks(size) * BLOCK - size
    return xp.reshape(xp.pad(flat, [(0, missing)]) if missing else flat, (-1, BLOCK))


def coded_moments(first: Any, second: Any, gradient: Any, xp: Any) -> list[Any]:
    """Codes (whole floats) and scales of both moments.

    Args:
        first: The first moment in blocks.
        second: The second moment in blocks.
        gradient: In blocks; where it is exactly zero, the first moment is rounded towards zero.
        xp: ``keras.ops`` or ``numpy``.
    """
    highest, lowest = xp.max(first, axis=1, keepdims=True), xp.min(first, axis=1, keepdims=True)
    first_scale = xp.where(highest >= -lowest, highest, lowest)
    second_scale = xp.max(second, axis=1, keepdims=True)
    offset = xp.where(gradient == 0, 0.5, 1.0)
    first_codes = SIGNED.codes(first / _not_zero(first_scale, xp), xp, offset=offset)
    second_codes = UNSIGNED.codes(second / _not_zero(second_scale, xp), xp)
    second_codes = xp.where(second > 0, xp.maximum(second_codes, 1.0), second_codes)
    return [first_codes, first_scale, second_codes, second_scale]


def _not_zero(scale: Any, xp: Any) -> Any:
    return xp.where(scale == 0, 1.0, scale)


_KEPT_DTYPES = ("uint8", "float32", "uint8", "float32")


def to_kept(moments: list[np.ndarray]) -> list[np.ndarray]:
    """What ``EightBitAdam`` keeps for two float moments; a slice at a time, all on the host.

    Example:
        >>> codes, scales, *_ = to_kept([np.full((64, 64), 0.5), np.zeros((64, 64))])
        >>> codes.shape, codes.dtype.name, int(codes[0]), float(scales[0])
        ((4096,), 'uint8', 255, 0.5)
    """
    first, second = (moment.astype("float32", copy=False).reshape(-1) for moment in moments)
    if not is_coded(moments[0].shape):
        return [moment.astype("float32") for moment in moments]
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, first.size, CHUNK):
        one, other = (in_blocks(moment[start : start + CHUNK], np) for moment in (first, second))
        found = zip(parts, coded_moments(one, other, one, np), _KEPT_DTYPES, strict=True)
        for part, coded, dtype in found:
            part.append(coded.reshape(-1).astype(dtype))
    return [np.concatenate(part)[: first.size] for part in parts]


def from_kept(kept: list[np.ndarray], shape: Any) -> list[np.ndarray]:
    """The two float moments of a weight of a shape from what ``EightBitAdam`` keeps for them."""
    if not is_coded(shape):
        return kept
    first, second = (_numbers(code, *pair) for code, pair in ((SIGNED, kept[:2]), (UNSIGNED, kept[2:])))
    return [first.reshape(tuple(shape)), second.reshape(tuple(shape))]


def _numbers(code: DynamicCode, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    numbers = code.table[codes]
    for start in range(0, numbers.size, CHUNK):
        part, blocks = slice(start, start + CHUNK), slice(start // BLOCK, (start + CHUNK) // BLOCK)
        numbers[part] *= np.repeat(scales[blocks], BLOCK)[: numbers[part].size]
    return numbers
