"""When a batch is planned for anew."""

from __future__ import annotations

from memfit.guarding.larger import Larger


def test_only_a_batch_that_is_the_largest_so_far_and_does_not_fit_is_planned_for() -> None:
    asked: list[float] = []
    planned: list[int] = []

    def fits(times: float) -> bool:
        asked.append(times)
        return times <= 4

    def described(batch: int) -> tuple[int, int] | None:
        return (batch, batch) if batch else None

    larger = Larger(10, described=described, fits=fits, replan=planned.append)
    for batch in (10, 5, 20, 15, 0, 40, 20, 40, 60):
        larger.look(batch)
    assert asked == [4.0, 16.0, 2.25]
    assert planned == [40]
