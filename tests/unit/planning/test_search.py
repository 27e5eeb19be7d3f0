from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memfit.backends.simulated import SimulatedBackend, SimulatedModel
from memfit.planning.search import largest_micro_batch, sizes
from memfit.records import Estimate, Split

batch_sizes = st.integers(1, 5000)


def searched(batch_size: int, model: SimulatedModel, ceiling: int) -> tuple[int | None, Estimate, int]:
    asked = []

    def predict(size: int) -> Estimate:
        asked.append(size)
        return model.backend.step_bytes(model, batch_size, Split(size))

    whole = model.backend.step_bytes(model, batch_size, None)
    return *largest_micro_batch(batch_size, predict, ceiling, whole=whole), len(asked)


@given(batch_sizes)
def test_sizes_shrink_to_one_and_never_reach_the_batch(batch_size: int) -> None:
    found = sizes(batch_size)
    assert list(found) == sorted(set(found), reverse=True)
    assert all(1 <= size < batch_size for size in found)
    assert batch_size == 1 or found[-1] == 1


@given(batch_sizes, st.integers(1, 10**6), st.integers(0, 10**8), st.floats(0.01, 0.99))
def test_a_found_size_fits_and_what_does_not_fit_is_said(per_batch: int, sample: int, fixed: int, share: float) -> None:
    model = SimulatedModel(SimulatedBackend(0), bytes_per_sample=sample, fixed_bytes=fixed)
    ceiling = int(model.step_bytes(per_batch, None) * share)
    size, estimate, _ = searched(per_batch, model, ceiling)
    if size is None:
        assert model.step_bytes(per_batch, Split(1)) > ceiling
    else:
        assert estimate.upper <= ceiling
        assert model.step_bytes(per_batch, Split(size)) == estimate.bytes


@given(batch_sizes, st.integers(1, 10**6), st.integers(0, 10**8), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_more_budget_never_gives_a_smaller_part(batch: int, sample: int, fixed: int, one: float, other: float) -> None:
    model = SimulatedModel(SimulatedBackend(0), bytes_per_sample=sample, fixed_bytes=fixed)
    need = model.step_bytes(batch, None)
    small, large = sorted((int(need * one), int(need * other)))
    size_small, size_large = searched(batch, model, small)[0], searched(batch, model, large)[0]
    assert (size_small or 0) <= (size_large or 0)


@given(st.integers(2, 5000), st.integers(1, 10**6), st.floats(0.02, 0.98))
def test_a_straight_line_is_found_in_few_questions(batch_size: int, sample: int, share: float) -> None:
    model = SimulatedModel(SimulatedBackend(0), bytes_per_sample=sample, fixed_bytes=10**6)
    ceiling = 10**6 + int(sample * batch_size * share)
    assert searched(batch_size, model, ceiling)[2] <= 6


def test_the_largest_size_is_taken() -> None:
    model = SimulatedModel(SimulatedBackend(0), bytes_per_sample=10, fixed_bytes=100)
    assert searched(256, model, 100 + 10 * 64)[0] == 64
    assert searched(256, model, 100 + 10 * 64 - 1)[0] == 43
