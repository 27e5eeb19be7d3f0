"""The dynamic code: its table, the step of a number, and blocks there and back, in numpy alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memfit.levers.quantile_code import SIGNED, UNSIGNED, DynamicCode

CODES = pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])


def there_and_back(code: DynamicCode, numbers: np.ndarray, **options: float) -> np.ndarray:
    return code.table[code.codes(numbers, np, **options).astype("uint8")]


@CODES
def test_the_table_has_256_numbers_in_order_that_are_their_own_codes(code: DynamicCode) -> None:
    assert code.table.shape == (256,)
    assert code.table.dtype == np.float32
    assert np.all(np.diff(code.table) > 0)
    np.testing.assert_array_equal(code.codes(code.table, np), np.arange(256))
    assert code.table[code.zero] == 0
    assert code.table[-1] == 1


def test_the_ends_are_those_of_the_published_code() -> None:
    assert SIGNED.table[0] == pytest.approx(-(1 - 0.9 / 128))
    assert SIGNED.table[128] == pytest.approx(5.5e-7)  # one step from 1e-7 to 1e-6
    assert UNSIGNED.table[1:3] == pytest.approx([3.25e-7, 7.75e-7])  # two steps
    assert UNSIGNED.table[254] == pytest.approx(1 - 0.9 / 256)


@given(hnp.arrays("float32", 20, elements=st.floats(-1, 1, width=32)))
def test_a_number_is_at_most_half_a_step_of_its_decade_away(numbers: np.ndarray) -> None:
    size = np.abs(numbers.astype("float64"))
    # On the edge of a decade, which float32 misses by rounding, the steps of the one above count.
    decade = np.clip(np.floor(np.log10(np.maximum(size * (1 + 1e-6), 1e-7))) + 7, 0, 6)
    for code, given_numbers, steps in (
        (SIGNED, numbers, 2.0**decade),
        (UNSIGNED, np.abs(numbers), 2.0 ** (decade + 1)),
    ):
        half = 10.0 ** (decade - 6) * 0.9 / steps / 2
        bound = half * 1.001 + np.where(size < 1e-7, 1e-7, 0)
        assert np.all(np.abs(there_and_back(code, given_numbers) - given_numbers) <= bound)


@given(hnp.arrays("float32", 20, elements=st.floats(-1, 1, width=32)))
def test_codes_keep_the_order_of_numbers(numbers: np.ndarray) -> None:
    for code, ordered in ((SIGNED, np.sort(numbers)), (UNSIGNED, np.sort(np.abs(numbers)))):
        codes = code.codes(ordered, np)
        assert np.all(np.diff(codes) >= 0)
        assert codes.min() >= 0
        assert codes.max() <= 255


@given(hnp.arrays("float32", 20, elements=st.floats(-0.984375, 0.984375, width=32)))
def test_towards_zero_never_grows(numbers: np.ndarray) -> None:
    back = there_and_back(SIGNED, numbers, offset=0.5)
    assert np.all(np.abs(back) <= np.abs(numbers) * 1.00001)


def test_towards_zero_what_shrinks_dies_and_by_steps_alone_it_does_not() -> None:
    dying = staying = np.array([1e-3], "float32")
    for _ in range(200):
        dying = there_and_back(SIGNED, 0.9 * dying, offset=0.5)
        staying = there_and_back(SIGNED, 0.9 * staying)
    assert dying == 0
    assert staying > 0
