"""``memfit plan`` without a framework: what it takes and what it says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from memfit.cli import model_sources, option_types, plan
from memfit.errors import ArgumentError
from memfit.records import Budget, Consumer, Estimate, Moment, Plan, Profile, Reading

BUDGET = Budget(1000, "a test")
PROFILE = Profile(
    backend="simulated",
    device="cpu",
    batch_size=8,
    weights=10,
    gradients=10,
    optimizer_state=20,
    inputs=5,
    layers=(Consumer("dense", "Dense", 40),),
    base=Reading(300, None, "a test"),
    peak=Estimate(700, 100, "scripted", Moment("backward", "dense", "mul")),
    validation_peak=Estimate(500, 50, "scripted"),
)


@pytest.mark.parametrize(
    ("text", "expected"), [("224,224,3", (224, 224, 3)), ("(10,)", (10,)), ("7", (7,)), ("()", ())]
)
def test_shapes(text: str, expected: tuple[int, ...]) -> None:
    assert option_types.shape(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3,0", "3;4", "-1"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        option_types.shape(text)


def test_a_function_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "my_models.py"
    script.write_text("def build():\n    return 'a model'\n\nnumber = 3\n")
    assert model_sources.loaded(f"{script}:build") == "a model"
    for wrong in (f"{script}:other", f"{script}:number"):
        with pytest.raises(ArgumentError, match="has no function"):
            model_sources.loaded(wrong)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "not one that memfit can find"),
        (":build", "not one that memfit can find"),
        ("no_such_module_of_mine:build", "cannot be imported"),
        ("no/such/script.py:build", "no such file"),
        ("no/such/model.keras", "no such file"),
    ],
)
def test_sources_that_cannot_be(source: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        model_sources.loaded(source)
    assert repr(source) in str(caught.value)


def test_an_error_of_the_users_code_is_the_users(tmp_path: Path) -> None:
    script = tmp_path / "broken_models.py"
    script.write_text("def build():\n    raise ZeroDivisionError('mine')\n")
    with pytest.raises(ZeroDivisionError):
        model_sources.loaded(f"{script}:build")


def test_the_object_for_programs() -> None:
    split = Plan(8, 4, BUDGET, peak=Estimate(500, 60, "scripted"))
    found = plan.Found(PROFILE, BUDGET, split, None, 1.5).as_dict()
    found = json.loads(json.dumps(found))
    assert (found["peak_bytes"], found["step_peak_bytes"], found["base_bytes"]) == (700, 400, 300)
    assert (found["margin_bytes"], found["budget_bytes"], found["fits"]) == (100, 1000, True)
    assert (found["micro_batch_size"], found["plan_peak_bytes"], found["method"]) == (4, 500, "scripted")
    assert found["profile"]["peak"]["moment"]["layer"] == "dense"


def test_margin_decides_whether_it_fits() -> None:
    for room, fits in ((800, True), (799, False)):
        assert plan.Found(PROFILE, Budget(room, "a test"), None, "too large", 0.0).fits is fits


def test_the_text_for_people() -> None:
    text = str(plan.Found(PROFILE, Budget(600, "a test"), None, "the largest consumers: dense", 0.0))
    for part in ("backward of dense (mul)", "validation step", "does not fit", "largest consumers: dense", "weights"):
        assert part in text
