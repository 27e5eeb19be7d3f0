"""Growth told apart from warm-ups, plateaus and noise; the expected slopes are those that were put in."""

from __future__ import annotations

import doctest
import math
import random

import pytest

from memfit.guarding import leaks
from memfit.guarding.leaks import Growth, Levels

MB = 1_000_000


def found(held: list[float]) -> Growth | None:
    levels = Levels()
    for batch, num_bytes in enumerate(held):
        levels.add(batch, int(num_bytes))
    return levels.growth()


def noise(seed: int, count: int, size: float) -> list[float]:
    generator = random.Random(seed)
    return [generator.uniform(0, size) for _ in range(count)]


@pytest.mark.parametrize(("count", "per_batch"), [(12, 3 * MB), (100, 0.05 * MB), (5000, 0.05 * MB), (5000, 3 * MB)])
def test_a_leak_is_found_with_its_slope(count: int, per_batch: float) -> None:
    growth = found([800 * MB + per_batch * i + n for i, n in enumerate(noise(1, count, 0.3 * per_batch))])
    assert growth is not None
    assert growth.bytes_per_batch == pytest.approx(per_batch, rel=0.15)


def test_a_leak_after_a_warm_up_and_under_garbage_that_comes_and_goes() -> None:
    warm = [400 * MB * (1 - math.exp(-i / 20)) for i in range(1000)]
    sawtooth = [(i % 7) * 10 * MB for i in range(1000)]
    growth = found([500 * MB + w + s + 0.2 * MB * i for i, (w, s) in enumerate(zip(warm, sawtooth, strict=True))])
    assert growth is not None
    assert growth.bytes_per_batch == pytest.approx(0.2 * MB, rel=0.2)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_leak(seed: int) -> None:
    assert found([900 * MB + n for n in noise(seed, 500, 40 * MB)]) is None


@pytest.mark.parametrize("batches", [5, 40, 200, 400])
def test_a_warm_up_that_ends_is_no_leak(batches: int) -> None:
    assert found([500 * MB + 600 * MB * (1 - math.exp(-i / batches)) for i in range(2000)]) is None


def test_one_step_up_is_no_leak() -> None:
    assert found([500 * MB + (300 * MB if i > 700 else 0) + n for i, n in enumerate(noise(3, 1000, MB))]) is None


def test_what_is_too_little_to_matter_is_none() -> None:
    assert found([900 * MB + 10.0 * i for i in range(1000)]) is None


def test_few_looks_say_nothing() -> None:
    assert found([MB * 100 * i for i in range(6)]) is None


def test_windows_in_which_nobody_looked() -> None:
    levels = Levels()
    for batch in (0, 1, 2, *range(1000, 9000, 1000)):
        levels.add(batch, 500 * MB + 10_000 * batch)
    growth = levels.growth()
    assert growth is not None
    assert growth.bytes_per_batch == pytest.approx(10_000, rel=0.3)


def test_sentences() -> None:
    growth = Growth(50_000, 100 * MB, 200 * MB, 2000)
    assert growth.text(100) == "host memory grows by 5.0 MB an epoch: from 95.4 MiB to 191 MiB in 2000 batches"
    assert "50.0 MB in 1000 batches" in growth.text(None)


def test_examples() -> None:
    assert doctest.testmod(leaks).failed == 0
