"""The TFRecord format against bytes that TensorFlow wrote; tests/contract/on_tensorflow asks TensorFlow itself."""

from __future__ import annotations

import pathlib

import pytest

from memfit import data, errors
from memfit.data import tfrecord_format

# tf.train.Example with x = [1.5, -2.0], n = [3, 300, -1] and s = [b"ab", b""].
EXAMPLE = bytes.fromhex(
    "0a3a0a160a016e12111a0f0a0d03ac02ffffffffffffffffff010a0d0a01"
    "7312080a060a0261620a000a110a0178120c120a0a080000c03f000000c0"
)


def record(content: bytes) -> bytes:
    length = len(content).to_bytes(8, "little")
    return length + tfrecord_format.masked_crc(length).to_bytes(4, "little") + content + bytes(4)


def test_floats_integers_and_bytes() -> None:
    found = tfrecord_format.parse_example(EXAMPLE)
    assert sorted(found) == ["n", "s", "x"]
    assert found["x"].tolist() == [1.5, -2.0]  # type: ignore[union-attr]
    assert found["n"].tolist() == [3, 300, -1]  # type: ignore[union-attr]
    assert found["s"] == [b"ab", b""]


def test_bytes_that_are_no_example_are_a_value_error_wherever_they_are_cut() -> None:
    for cut in range(1, len(EXAMPLE)):
        with pytest.raises(ValueError, match="not an Example"):
            tfrecord_format.parse_example(EXAMPLE[:cut])
    with pytest.raises(ValueError, match="not an Example: wire type 7"):
        tfrecord_format.parse_example(b"\x0f" + EXAMPLE)


def test_the_checksum_is_that_of_the_format() -> None:
    # The check value of CRC-32C, masked.
    crc = 0xE3069283
    assert tfrecord_format.masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_where_records_lie_and_files_that_are_none(tmp_path: pathlib.Path) -> None:
    two = record(b"abc") + record(b"")
    assert list(tfrecord_format.spans(write(tmp_path / "two", two))) == [(12, 3), (31, 0)]
    assert list(tfrecord_format.spans(write(tmp_path / "empty", b""))) == []
    with pytest.raises(errors.MemfitError, match="is no TFRecord file"):
        list(tfrecord_format.spans(write(tmp_path / "text", b"a text that is no record")))
    for cut in (len(two) - 1, len(two) - 10):
        with pytest.raises(errors.MemfitError, match="ends within the record at byte 19"):
            list(tfrecord_format.spans(write(tmp_path / "cut", two[:cut])))


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({"y": ("float32", (2,))}, {}, r"no feature 'y'. It has: \['n', 's', 'x'\]"),
        (
            {"x": ("float32", (3,))},
            {},
            r"'x' of the record at byte 12 of .* has 2 values of float32. Received: .* which is 3",
        ),
        ({"x": "float32"}, {}, "`features` must say the dtype and shape"),
        ({"x": ("words", ())}, {}, "`features` must say"),
        ({"x": ("image", (4, 4))}, {}, "`features` must say"),
        ({"x": ("float32", (2,))}, {"label": "x"}, "`label` is one of them beside others"),
        ({"s": ("image", (4, 4, 3))}, {}, "holds no image as 's': not one string of bytes"),
    ],
)
def test_mistakes_before_keras_is_imported(
    tmp_path: pathlib.Path, features: object, options: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "a.tfrecord", record(EXAMPLE))
    with pytest.raises(errors.MemfitError, match=message):
        data.tfrecord(path, features, **options)  # type: ignore[arg-type]


def test_a_file_that_is_cut_off_is_an_error(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.tfrecord", record(EXAMPLE))
    write(tmp_path / "b.tfrecord", record(EXAMPLE) + record(EXAMPLE)[:20])
    with pytest.raises(errors.MemfitError, match=r"1 of 3 files cannot be read. Received: max_broken=0"):
        data.tfrecord(tmp_path, {"x": ("float32", (2,))})
