"""The loop around a train step, on a device that is simulated: no framework takes part."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from memfit.backends.simulated import SimulatedBackend, SimulatedModel, SimulatedOutOfMemory
from memfit.errors import OutOfMemoryError
from memfit.guarding.recover import Recovery, survives
from memfit.records import Split


class Run:
    """A model under a recovery that halves its micro-batch."""

    def __init__(self, backend: SimulatedBackend, *, bound: Any = None, **model: Any) -> None:
        self.backend = backend
        self.model = SimulatedModel(backend, bytes_per_sample=10, **model)
        self.events: list[str] = []
        self.sizes: list[int] = []
        recovery = Recovery(
            backend, shrink=self.shrink, log=lambda kind, message: self.events.append(kind), bound=bound
        )
        recovery.around = self.model.around = backend.around(self.model, "train", recovery)  # type: ignore[assignment]

    def shrink(self, failure: str) -> None:
        size = self.model.split.micro_batch_size if self.model.split else 32
        if size == 1:
            raise OutOfMemoryError(f"nothing smaller ({failure})")
        self.sizes.append(size // 2)
        self.model.around.exchange(lambda: setattr(self.model, "split", Split(size // 2)))  # type: ignore[union-attr]


@pytest.mark.parametrize("tears", [False, True])
def test_the_same_batch_goes_through_again_smaller(tears: bool) -> None:
    run = Run(SimulatedBackend(total_bytes=100), tears=tears)
    run.model.fit(batch_size=32, steps=3)
    assert run.model.weights == (32, 32, 32)
    assert run.sizes == [16, 8]
    assert run.events == ["out of memory"] * 2
    assert run.backend.releases == 2


def test_a_failure_at_any_later_step() -> None:
    run = Run(SimulatedBackend(total_bytes=1000, failures=(3, 6)))
    run.model.fit(batch_size=32, steps=6)
    assert run.model.weights == (32,) * 6
    assert run.sizes == [16, 8]


def test_larger_batches_later_on_are_undone_even_if_weights_were_written() -> None:
    run = Run(SimulatedBackend(total_bytes=330), tears=True)
    run.model.fit(batch_size=20, steps=3)
    run.model.fit(batch_size=64, steps=2)
    run.model.fit(batch_size=20)
    assert run.model.weights == (20, 20, 20, 64, 64, 20)


def test_weights_written_at_shapes_that_had_gone_through_end_the_run_with_the_last_copy() -> None:
    run = Run(SimulatedBackend(total_bytes=1000, failures=(3,)), tears=True)
    with pytest.raises(OutOfMemoryError, match="as it was 3 steps before"):
        run.model.fit(batch_size=32, steps=6)
    assert run.model.weights == ()


def test_where_nothing_is_smaller_the_weights_are_back() -> None:
    run = Run(SimulatedBackend(total_bytes=5), tears=True)
    with pytest.raises(OutOfMemoryError, match="nothing smaller"):
        run.model.fit(batch_size=32)
    assert run.sizes == [16, 8, 4, 2, 1]
    assert run.model.weights == ()


class Bound:
    """Leaves a simulated device less than it has."""

    def __init__(self, backend: SimulatedBackend, most_bytes: int) -> None:
        self._backend = backend
        self._most = most_bytes
        self.looks = 0
        self.keeps_closed = False
        self.has_gaps = False
        self.more = 0

    def finds_room(self) -> bool:
        """Once."""
        more, self.more = self.more, 0
        self._most += more
        return more > 0

    def applied(self) -> Any:
        return self._backend.bounded_device(self._most)

    def start_over(self) -> None:
        self.looks += 1

    def keep_gaps_closed(self) -> bool:
        self.keeps_closed, before = self.has_gaps, self.keeps_closed
        return self.keeps_closed and not before


def test_within_a_bound_a_step_is_made_smaller_until_it_fits_there() -> None:
    backend = SimulatedBackend(total_bytes=1000)
    bound = Bound(backend, 100)
    run = Run(backend, bound=bound, tears=True)
    run.model.fit(batch_size=32, steps=3)
    assert run.model.weights == (32, 32, 32)
    assert run.sizes == [16, 8]
    assert bound.looks == 2
    assert backend.peak_bytes <= 100
    assert backend.total_bytes == 1000


def test_a_step_that_found_gaps_goes_through_again_without_them_before_it_is_made_smaller() -> None:
    backend = SimulatedBackend(total_bytes=1000, failures=(2,))
    bound = Bound(backend, 1000)
    bound.has_gaps = True
    run = Run(backend, bound=bound)
    run.model.fit(batch_size=32, steps=3)
    assert run.model.weights == (32, 32, 32)
    assert run.sizes == []
    assert run.events == ["out of memory", "retry"]
    bound._most = 100
    run.model.fit(batch_size=32)
    assert run.sizes == [16, 8]


def test_where_the_bound_was_too_low_the_step_goes_through_again_as_it_is() -> None:
    backend = SimulatedBackend(total_bytes=1000)
    bound = Bound(backend, 300)
    bound.more = 100
    run = Run(backend, bound=bound)
    run.model.fit(batch_size=32, steps=3)
    assert run.model.weights == (32, 32, 32)
    assert run.sizes == []
    assert run.events == ["out of memory", "retry"]


def test_where_nothing_is_small_enough_for_the_bound_it_stays_in_force() -> None:
    backend = SimulatedBackend(total_bytes=1000)
    run = Run(backend, bound=Bound(backend, 5), tears=True)
    with pytest.raises(OutOfMemoryError, match="nothing smaller"):
        run.model.fit(batch_size=32, steps=2)
    assert run.sizes == [16, 8, 4, 2, 1]
    assert backend.peak_bytes <= 5
    assert run.model.weights == ()


def test_other_errors_are_not_met() -> None:
    run = Run(SimulatedBackend(total_bytes=1000))
    run.model.step = lambda batch: (_ for _ in ()).throw(ValueError("mine"))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="mine"):
        run.model.fit(batch_size=32)
    assert run.events == []


class Tensor:
    """Something that a step holds."""


def test_what_a_failed_step_held_is_gone_before_it_is_tried_again() -> None:
    run = Run(SimulatedBackend(total_bytes=100))
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    kept_errors: list[BaseException] = []
    step = run.model.step

    def holding(batch: int) -> None:
        alive.append(sum(reference() is not None for reference in held))
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        try:
            step(batch)
        except SimulatedOutOfMemory as error:
            kept_errors.append(error)  # as a notebook keeps the last error
            raise

    run.model.step = holding  # type: ignore[method-assign]
    gc.disable()
    try:
        run.model.fit(batch_size=32)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_who_survives() -> None:
    class InHostMemory(SimulatedBackend):
        def device_memory(self) -> Any:
            return None

    assert survives(SimulatedBackend(1))
    assert not survives(InHostMemory(1))


def test_a_device_is_bounded_and_given_back() -> None:
    backend = SimulatedBackend(total_bytes=1000)
    with backend.bounded_device(100) as said:
        assert said == "limited to 100 bytes"
        with pytest.raises(SimulatedOutOfMemory):
            SimulatedModel(backend, bytes_per_sample=10).fit(batch_size=32)
    SimulatedModel(backend, bytes_per_sample=10).fit(batch_size=32)
