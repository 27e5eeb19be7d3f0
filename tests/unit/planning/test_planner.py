"""The plan's reasons: what was needed, what was pulled, what it costs, what was rejected and why."""

from __future__ import annotations

import dataclasses

from memfit.planning import planner
from memfit.planning.fastest import Option, Search, search
from memfit.records import Budget, Consumer, Estimate, Levers, Remat, Segment
from memfit.units import text

BUDGET = Budget(20_000, "asked for")
ONE, TWO = (Levers(remat=Remat(tuple(Segment(i, i + 1) for i in range(number)))) for number in (1, 2))
PER_SAMPLE = {Levers(): 2000, ONE: 700, TWO: 500}


def found(ceiling: int, *, splits: bool = True, part_time: float = 0.02) -> Search[Levers]:
    return search(
        [Option(Levers()), Option(ONE, 1.3), Option(TWO, 1.4)],
        32,
        predict=lambda levers, size: Estimate(PER_SAMPLE[levers] * size, 100, "scripted"),
        ceiling=ceiling,
        part_time=part_time,
        splits=splits,
    )


def test_the_plan_says_what_was_needed_and_what_is_there() -> None:
    plan = planner.arranged(32, BUDGET, Estimate(64_000, 0, "scripted"), found(20_000))
    assert (plan.micro_batch_size, plan.num_parts) == (8, 4)
    assert not plan.levers
    assert "8 (4 parts)" in str(plan)
    assert "plain step on 32 samples would need 62.5 KiB of 19.5 KiB" in str(plan)


def test_what_is_recomputed_is_said_with_its_time_and_what_was_rejected() -> None:
    plan = planner.arranged(32, BUDGET, Estimate(64_000, 0, "scripted"), found(20_000, splits=False))
    assert plan.levers == TWO
    assert plan.micro_batch_size is None
    assert "2 segments recomputed in the backward pass" in plan.summary
    assert "1.40 times the plain step's" in str(plan)
    assert "the whole batch with 1 segment recomputed in the backward pass: does not fit, needs 22 KiB" in str(plan)


def test_a_slower_arrangement_that_fits_too_is_named() -> None:
    plan = planner.arranged(32, BUDGET, Estimate(64_000, 0, "scripted"), found(20_000, part_time=0.2))
    assert plan.levers == TWO
    assert "micro-batches of 8 (4 parts): fits too, but would take 1.60 times as long" in str(plan)


def test_a_refusal_names_the_smallest_budget_that_would_do() -> None:
    message = planner.refusal(found(200).smallest, 32, 200)
    assert "one sample at a time with 2 segments recomputed in the backward pass needs 600 B" in message
    assert "smallest budget that would do is 600 B" in message


def test_consumers_are_in_one_line_without_the_empty_ones() -> None:
    consumers = (Consumer("conv", "Conv2D", 2048), Consumer("weights", "weights", 0))
    assert planner.consumers_text(consumers) == "The largest consumers: conv (Conv2D) 2 KiB."


def test_what_a_plan_needs_at_most_is_its_whole_margin_as_far_as_the_budget_goes() -> None:
    searched = found(20_000)
    assert searched.fastest is not None
    for left_out, most in ((1_000, searched.fastest.peak.upper + 1_000), (10**9, BUDGET.limiting_bytes)):
        peak = dataclasses.replace(searched.fastest.peak, left_out=left_out)
        thin = dataclasses.replace(searched, fastest=dataclasses.replace(searched.fastest, peak=peak))
        plan = planner.arranged(32, BUDGET, Estimate(64_000, 0, "scripted"), thin)
        assert any(f"needs {text(most)} at most" in reason for reason in plan.reasons), plan.reasons
