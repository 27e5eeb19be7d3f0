from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.records import Budget, Consumer, Estimate, Levers, Plan, Profile, Reading, Remat, Segment, StepCosts

amounts = st.integers(0, 2**45)
estimates = st.builds(Estimate, bytes=amounts, margin=amounts, source=st.text(max_size=8))
budgets = st.builds(Budget, host_bytes=amounts, source=st.text(max_size=8), device_bytes=st.none() | amounts)
segments = st.builds(Segment, start=st.integers(0, 99), stop=st.integers(0, 99))
levers = st.builds(
    Levers,
    remat=st.none() | st.builds(Remat, st.lists(segments, min_size=1, max_size=3).map(tuple)),
    precision=st.sampled_from([None, "mixed_bfloat16", "mixed_float16"]),
    own_pages=st.booleans(),
    xla_off=st.booleans(),
    grouped_update=st.booleans(),
)
plans = st.builds(
    Plan,
    batch_size=st.none() | st.integers(1, 10**6),
    micro_batch_size=st.none() | st.integers(1, 10**6),
    budget=budgets,
    peak=st.none() | estimates,
    validation_batch_size=st.none() | st.integers(1, 10**6),
    reasons=st.lists(st.text(max_size=20), max_size=3).map(tuple),
    levers=levers,
    relative_time=st.floats(1, 10),
)


@given(plans)
def test_a_plan_survives_json(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_of_before_a_lever_was_there_pulls_it_not() -> None:
    plan = Plan(8, 4, Budget(100, "asked for"), levers=Levers(own_pages=True))
    fields = json.loads(plan.to_json())
    del fields["levers"]["xla_off"]
    assert Plan.from_json(json.dumps(fields)) == plan


@given(plans)
def test_parts_cover_the_batch(plan: Plan) -> None:
    if plan.batch_size is not None and plan.micro_batch_size is not None:
        assert plan.num_parts * plan.micro_batch_size >= plan.batch_size
        assert (plan.num_parts - 1) * plan.micro_batch_size < plan.batch_size
    else:
        assert plan.num_parts == 1


@pytest.mark.parametrize("document", ["", "{}", "[]", '{"batch_size": 1}', "null"])
def test_what_is_no_plan_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="Not a plan"):
        Plan.from_json(document)


def test_consumers_are_sorted_over_layers_and_categories() -> None:
    profile = Profile(
        backend="torch",
        device="cpu",
        batch_size=8,
        weights=10,
        gradients=20,
        optimizer_state=30,
        inputs=5,
        layers=(Consumer("conv", "Conv2D", 25),),
        base=Reading(1, None, "here"),
        peak=Estimate(100, 1, "scripted"),
    )
    assert [consumer.bytes for consumer in profile.consumers] == [30, 25, 20, 10, 5]
    assert profile.activations == 25
    assert "optimizer state" in str(profile)


def test_levers_say_what_is_pulled() -> None:
    remat = Remat((Segment(0, 4), Segment(5, 8)))
    assert Levers().text == ""
    assert Levers(precision="mixed_float16").text == "computed in float16 where that is safe"
    assert Levers(own_pages=True).text == "large tensors in pages of their own"
    assert Levers(xla_off=True).text == "the step compiled without XLA"
    assert Levers(grouped_update=True).text == "weights updated in groups"
    assert Levers(own_pages=True, xla_off=True, grouped_update=True).exact
    assert Levers(remat, own_pages=True, xla_off=True, grouped_update=True).computing == Levers(remat)
    both = Levers(remat, precision="mixed_bfloat16").text
    assert both == "2 segments recomputed in the backward pass, computed in bfloat16 where that is safe"


def test_recomputing_saves_the_page_faults_of_what_it_does_not_keep() -> None:
    costs = StepCosts(0.4, part_seconds=1e-3, layer_seconds=1e-4, efficiency=0.5)
    assert costs.recomputed(0.5) == 1.2  # the memory is there from step to step
    assert costs.recomputed(0.5, kept=0.2, faulting=0.5) == pytest.approx(0.7)
    # A second of computing beside a second of page faults.
    assert costs.faulting(1e10 / 6, activations=10**9, rate=1e10, page_seconds=1e-9) == pytest.approx(0.5)


def test_each_part_issues_again_what_it_recomputes() -> None:
    costs = StepCosts(0.4, part_seconds=0.1, layer_seconds=0.01, efficiency=0.5, reissuing=1.5)
    step = {"num_layers": 10, "rate": 1e10}  # 0.2 s of issuing beside 0.8 of computing
    assert costs.part(4e9 / 3, **step) == pytest.approx(0.2)
    assert costs.part_again(4e9 / 3, **step, layers_again=4) == pytest.approx(0.06)


def test_what_can_be_left_out_of_a_margin() -> None:
    estimate = Estimate(100, 40, "scripted", spare=30)
    assert estimate.cautious(1.0) == estimate
    assert [estimate.cautious(share).upper for share in (0.0, 0.5, 1.0)] == [110, 125, 140]
    assert estimate.cautious(0.0).cautious(1.0).upper == 110, "what was left out is gone"
    assert {estimate.cautious(share).widest for share in (0.0, 0.5, 1.0)} == {140}, "and told"
    assert Estimate(100, 40, "scripted").cautious(0.0).upper == 140
    assert [estimate.cautious(0.0).most_under(bound) for bound in (120, 200)] == [120, 140]
    assert estimate.most_under(120) == 140, "nothing was left out, so that nothing keeps it from its margin"
    beyond = Estimate(100, 40, "scripted", spare=50).cautious(0.0)
    assert (beyond.bytes, beyond.margin, beyond.widest) == (90, 0, 140), "of the bytes what the margin has not"
