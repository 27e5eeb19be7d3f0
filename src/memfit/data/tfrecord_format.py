"""The TFRecord framing and ``tf.train.Example``, read without TensorFlow.

A record is its length (8 bytes, little endian), a checksum of that (4), the data, and a checksum of the data (4). An Example
is a protocol buffer: features -> map of name to one of a list of bytes, of floats or of integers. Both are a page of code;
the packages that read them bring protocol buffers and read from the beginning, where an index of offsets gives any record.
Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from memfit import errors

HEADER = 12
FOOTER = 4
GZIP = b"\x1f\x8b"
_CASTAGNOLI = 0x82F63B78

Features = dict[str, list[bytes] | np.ndarray]
"""Name -> list of bytes, or float32 or int64 of shape (num_values,)."""


def spans(path: str) -> Iterator[tuple[int, int]]:
    """Start and length of the data of every record of a file.

    Raises:
        MemfitError: It is no TFRecord file, or ends within a record.
    """
    size = os.path.getsize(path)
    if size == 0:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_first(data, path)
        position = 0
        while position < size:
            if position + HEADER > size:
                raise errors.MemfitError(_cut(path, position))
            (length,) = struct.unpack_from("<Q", data, position)
            if position + HEADER + length + FOOTER > size:
                raise errors.MemfitError(_cut(path, position))
            yield position + HEADER, length
            position += HEADER + length + FOOTER


def is_gzip(path: str) -> bool:
    """Whether a file is compressed as a whole."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def parse_example(data: bytes) -> Features:
    """The features of a serialized ``tf.train.Example``.

    Raises:
        ValueError: The bytes are none.

    Example:
        >>> parse_example(bytes.fromhex("0a0d0a0b0a016112061a040a020305"))["a"].tolist()
        [3, 5]
    """
    found: Features = {}
    view = memoryview(data)
    for number, features in _fields(view):
        if number != 1 or isinstance(features, int):
            continue
        for entry_number, entry in _fields(features):
            if entry_number == 1 and not isinstance(entry, int):
                name, values = _entry(entry)
                found[name] = values
    return found


def _entry(entry: memoryview) -> tuple[str, Any]:
    """Name and values of one entry of the map."""
    name, values = "", np.zeros(0, np.float32)
    for number, value in _fields(entry):
        if isinstance(value, int):
            raise ValueError("not an Example: a feature is a number")
        if number == 1:
            name = bytes(value).decode()
        elif number == 2:
            values = _values(value)
    return name, values


def _values(feature: memoryview) -> Any:
    for kind, content in _fields(feature):
        if isinstance(content, int):
            raise ValueError("not an Example: a list is a number")
        if kind == 1:
            return [bytes(value) for _, value in _fields(content) if not isinstance(value, int)]
        if kind == 2:
            parts = [value for _, value in _fields(content)]  # packed, or one float each
            return np.frombuffer(b"".join(bytes(part) for part in parts if not isinstance(part, int)), "<f4")
        if kind == 3:
            return _integers(content)
    return np.zeros(0, np.float32)


def _integers(content: memoryview) -> np.ndarray:
    packed = []
    for _, value in _fields(content):
        packed.append(np.array([value], np.uint64).astype(np.int64) if isinstance(value, int) else _varints(value))
    return np.concatenate(packed) if packed else np.zeros(0, np.int64)


def _varints(data: memoryview) -> np.ndarray:
    """int64 of packed variable-length integers: seven bits a byte, the lowest first."""
    octets = np.frombuffer(data, np.uint8)
    if not octets.size:
        return np.zeros(0, np.int64)
    last = octets < 128
    if not last[-1]:
        raise ValueError("not an Example: a number is cut off")
    if last.all():
        return octets.astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(octets)) - np.repeat(starts, np.diff([*starts, len(octets)]))
    bits = (octets & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts).astype(np.int64)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: a view of bytes, or an int."""
    position, size = 0, len(data)
    while position < size:
        key, position = _varint(data, position)
        match key & 7:
            case 2:
                length, position = _varint(data, position)
                stop = position + length
            case 0:
                value, position = _varint(data, position)
                yield key >> 3, value
                continue
            case 5:
                stop = position + 4
            case 1:
                stop = position + 8
            case kind:
                raise ValueError(f"not an Example: wire type {kind}")
        if stop > size:
            raise ValueError("not an Example: a field is cut off")
        yield key >> 3, data[position:stop]
        position = stop


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("not an Example: a number is cut off")
        octet = data[position]
        position += 1
        value |= (octet & 127) << shift
        if octet < 128:
            return value, position
        shift += 7


def _check_first(data: mmap.mmap, path: str) -> None:
    """Checks the checksum of the first length: other files have none."""
    if len(data) < HEADER or struct.unpack_from("<I", data, 8)[0] != masked_crc(data[:8]):
        raise errors.MemfitError(
            f"{path} is no TFRecord file: its first record has no valid checksum. Remove it from the folder, or name the files "
            "to read."
        )


def masked_crc(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _cut(path: str, position: int) -> str:
    return (
        f"{path} ends within the record at byte {position}: the file was not written or copied to its end. "
        "Copy it again, or leave it out."
    )
