from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit import units

SIZES = st.integers(0, 2**60)


@given(SIZES)
def test_round_trip_is_off_by_what_was_rounded_away(num_bytes: int) -> None:
    # "1 KiB" stands for up to 1.05 KiB: one digit after the point, half a step.
    back = units.parse(units.text(num_bytes))
    assert abs(back - num_bytes) <= 0.05 * num_bytes


@given(st.integers(1, 98), st.sampled_from([units.KIB, units.MIB, units.GIB, 1024**4]))
def test_round_trip_of_whole_units_is_exact(count: int, unit: int) -> None:
    assert units.parse(units.text(count * unit)) == count * unit


@given(SIZES, SIZES)
def test_order_survives(first: int, second: int) -> None:
    less, more = sorted((first, second))
    assert units.parse(units.text(less)) <= units.parse(units.text(more))


@given(st.integers(1, 2**60))
def test_sign_survives(num_bytes: int) -> None:
    assert units.text(-num_bytes) == "-" + units.text(num_bytes)


@given(st.integers(0, 10**15 - 1))
def test_plain_numbers_are_bytes(num_bytes: int) -> None:
    assert units.parse(str(num_bytes)) == num_bytes
    assert units.parse(f" {num_bytes} B ") == num_bytes


@given(SIZES)
def test_text_has_three_digits_at_most(num_bytes: int) -> None:
    number, unit = units.text(num_bytes).split()
    assert unit in {"B", "KiB", "MiB", "GiB", "TiB"}
    assert len(number.replace(".", "")) <= 3 or unit == "TiB"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KiB"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (100 * units.KIB, "100 KiB"),
        (1023 * units.KIB, "1 MiB"),
        (12 * units.GIB, "12 GiB"),
        (2000 * 1024**4, "2000 TiB"),
    ],
)
def test_text(num_bytes: int, text: str) -> None:
    assert units.text(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1.5 GiB", 3 * 2**29),
        ("1.5g", 3 * 2**29),
        ("2 GB", 2 * 10**9),
        (".5 kib", 512),
        ("3.", 3),
        ("7 tb", 7 * 10**12),
    ],
)
def test_parse(text: str, num_bytes: int) -> None:
    assert units.parse(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1 GiB", "1e9", "nan", "inf", "1 GiB 2", "1,5 GiB", "1 PiB", "0x10"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is written like '12 GiB'") as caught:
        units.parse(text)
    assert repr(text) in str(caught.value)
