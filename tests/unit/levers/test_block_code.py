"""Moments there and back through what the 8-bit Adam keeps, on the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.levers import block_code
from memfit.levers.block_code import from_kept, state_bytes, to_kept


def moments(size: int, seed: int, scale: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    first = (scale * rng.normal(size=size) * 10.0 ** rng.integers(-3, 1, size)).astype("float32")
    return [first, np.square(first)]


@settings(max_examples=25, deadline=None)
@given(st.integers(4096, 20_000), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e4]))
def test_moments_come_back_within_the_steps_of_their_blocks(size: int, seed: int, scale: float) -> None:
    given_moments = moments(size, seed, scale)
    kept = to_kept(given_moments)
    assert sum(array.nbytes for array in kept) == state_bytes((size,)) <= 2.1 * size
    for before, after in zip(given_moments, from_kept(kept, (size,)), strict=True):
        for start in range(0, size, block_code.BLOCK):
            block = slice(start, start + block_code.BLOCK)
            largest = np.abs(before[block]).max()
            assert np.abs(after[block] - before[block]).max() <= 0.0071 * largest
            assert np.abs(after[block]).max() == pytest.approx(largest, rel=1e-6)


def test_a_positive_second_moment_stays_positive_and_zero_stays_zero() -> None:
    second = np.zeros((4096,), "float32")
    second[:3] = [1.0, 1e-12, 1e-30]
    after = from_kept(to_kept([np.zeros_like(second), second]), second.shape)[1]
    assert np.all(after[:3] > 0)
    assert np.all(after[3:] == 0)


def test_zeros_are_kept_as_zeros() -> None:
    zero = np.zeros((5000,), "float32")
    for after in from_kept(to_kept([zero, zero]), zero.shape):
        np.testing.assert_array_equal(after, zero)


def test_small_moments_are_kept_as_they_are() -> None:
    pair = moments(100, 0, 1.0)
    for before, after in zip(pair, from_kept(to_kept(pair), (100,)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_slices_of_the_host_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = moments(10_000, 1, 1.0)
    whole = to_kept(pair)
    at_once = from_kept(whole, (10_000,))
    monkeypatch.setattr("memfit.levers.block_code.CHUNK", 1024)
    for one, other in zip(whole, to_kept(pair), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(from_kept(whole, (10_000,)), at_once, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(5000, 1000), (3, 3, 512, 4096), (8_000_000,), (1_000_000, 7), (2, 50_000_000)])
def test_chunks_are_whole_rows_and_whole_blocks(shape: tuple[int, ...]) -> None:
    strides = block_code.strides(shape)
    if strides is None:
        assert shape[0] == 2  # too few rows to divide
        return
    rows, codes, scales, *rest = strides
    row = int(np.prod(shape[1:]))
    assert codes == rows * row == scales * block_code.BLOCK
    assert rest == [codes, scales]
    assert codes <= max(2 * block_code.CHUNK, int(np.prod(shape)) // 2)
    assert -(-shape[0] // rows) <= 16
