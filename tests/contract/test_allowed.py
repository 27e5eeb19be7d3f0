"""Levers that change the result: pulled where they are allowed and needed, named where they would help, never by themselves.

What each takes is scripted: the planner's choices are under test here, on real models that are then really trained.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends
from memfit.backends import keras_seam
from memfit.backends.half_precision import HalfPrecision
from memfit.errors import ArgumentError, DoesNotFitError
from memfit.levers import allowed, micro_batch
from memfit.planning import guess
from memfit.predicting import Predictions
from memfit.records import NO_LEVERS, Estimate, Levers, Split, TensorSpec

MIB = 2**20
WIDTH = 128
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(4, WIDTH)).astype("float32"), RNG.normal(size=(4, 1)).astype("float32")
SPEC = (TensorSpec((1, WIDTH), "float32"), TensorSpec((1, 1), "float32"), None)
RUN: dict[str, Any] = {"batch_size": 1, "verbose": 0, "budget": 700 * MIB}


def model(optimizer: Any = "adam") -> Any:
    keras.utils.set_random_seed(1)
    body = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((WIDTH,)), *body, keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    keras_seam.symbolic_build(model, SPEC)
    return model


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with bfloat16, on which recomputation does not help and each of the other levers takes 200 MiB off 800."""

    def peak(self: Predictions, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate:
        saved = 200 * ((levers.precision is not None) + (levers.optimizer_state is not None))
        return Estimate((800 - saved) * MIB, 0, "scripted")

    monkeypatch.setattr(Predictions, "peak", peak)
    monkeypatch.setattr(Predictions, "idle", lambda self: 0)
    monkeypatch.setattr(Predictions, "crude", lambda self: Estimate(800 * MIB, 0, "scripted"))
    half = HalfPrecision("bfloat16", "scripted")
    monkeypatch.setattr(type(backends.current()), "half_precision", lambda self: half)


def test_without_permission_nothing_changes_the_result_and_what_would_help_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allowed, "_WORTH", 0.0)
    with pytest.raises(DoesNotFitError) as refusal:
        memfit.plan(model(), X, Y, **RUN)
    assert 'With allow={"precision"} layers would compute in bfloat16' in str(refusal.value)
    assert 'With allow={"optimizer_state"} the moments of the optimizer would take' in str(refusal.value)


def test_optimizer_state_is_kept_in_8_bits_where_that_is_allowed_and_needed() -> None:
    ours = model()
    optimizer, before = ours.optimizer, ours.get_weights()
    report = memfit.fit(ours, X, Y, **RUN, allow={"optimizer_state"}).memfit
    assert report.plan.levers == Levers(optimizer_state="adam8bit")
    assert not report.plan.exact
    assert "the optimizer's moments are rounded to 8 bits" in str(report.plan)
    assert ours.optimizer is optimizer
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 4
    assert next(tuple(v.shape) for v in optimizer.variables if v.path.endswith("kernel_momentum")) == (WIDTH, WIDTH)
    assert not np.array_equal(ours.get_weights()[0], before[0])


def test_layers_compute_in_half_precision_where_that_is_allowed_and_needed() -> None:
    ours = model()
    report = memfit.fit(ours, X, Y, **RUN | {"batch_size": 4}, allow={"precision"}).memfit
    assert report.plan.levers.computing == Levers(precision="mixed_bfloat16")
    assert not report.plan.exact
    assert "gradients differ from float32's by" in str(report.plan)
    assert {layer.dtype_policy.name for layer in ours.layers} == {"float32"}


def test_both_are_pulled_where_one_is_not_enough() -> None:
    run = RUN | {"budget": 500 * MIB}
    report = memfit.fit(model(), X, Y, **run, allow={"precision", "optimizer_state"}).memfit
    assert report.plan.levers == Levers(precision="mixed_bfloat16", optimizer_state="adam8bit")


def test_where_the_whole_batch_fits_nothing_is_pulled() -> None:
    run = RUN | {"budget": 900 * MIB}
    plan = memfit.plan(model(), X, Y, **run, allow={"precision", "optimizer_state"})
    assert plan.levers == NO_LEVERS
    assert plan.exact


def test_what_is_allowed_and_cannot_be_pulled_is_said() -> None:
    ours = model("sgd")
    sentences = allowed.refused(ours, SPEC, {"optimizer_state"}, backends.current())
    assert len(sentences) == 1
    assert sentences[0].startswith("optimizer_state is allowed but not pulled: SGD is not Keras' Adam")
    assert allowed.combinations(ours, SPEC, {"optimizer_state"}, backends.current()) == (allowed.Inexact(),)


def test_an_unknown_lever_is_refused() -> None:
    with pytest.raises(ArgumentError, match="inexact_micro_batch, precision, optimizer_state"):
        memfit.fit(model(), X, Y, allow={"half"})


def test_under_a_small_room_a_whole_batch_is_not_refused_for_what_a_split_one_would_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def peak(self: Predictions, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate:
        return Estimate((900 if split is not None else 800 if levers.remat is None else 690) * MIB, 0, "scripted")

    monkeypatch.setattr(Predictions, "peak", peak)
    monkeypatch.setattr(Predictions, "idle", lambda self: 600 * MIB)
    monkeypatch.setattr(guess, "_OPTIMISM", 0.0)  # nothing is left out by a guess
    plan = memfit.plan(model(), X, Y, **RUN | {"batch_size": 4, "budget": 745 * MIB})
    assert plan.levers.remat is not None
    assert plan.micro_batch_size is None
    with pytest.raises(DoesNotFitError, match="Training does not fit"):
        memfit.plan(model(), X, Y, **RUN | {"batch_size": 4, "budget": 680 * MIB})


def test_where_no_tiny_batch_fits_the_model_is_not_tested_and_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(self: Predictions, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate:
        return Estimate((1300 if levers.remat is None else 850) * MIB, 0, "scripted")

    def never(*_: Any) -> Any:
        raise AssertionError("the model was tested")

    monkeypatch.setattr(Predictions, "peak", peak)
    monkeypatch.setattr(Predictions, "crude", lambda self: Estimate(5000 * MIB, 0, "scripted"))
    monkeypatch.setattr(Predictions, "idle", lambda self: 600 * MIB)
    monkeypatch.setattr(guess, "_OPTIMISM", 0.0)
    monkeypatch.setattr(micro_batch, "separability", never)
    # A sample takes 175 MiB of 300: one can be compared, two cannot.
    plan = memfit.plan(model(), X, Y, **RUN | {"batch_size": 4, "budget": 900 * MIB})
    assert plan.levers.remat is not None
    assert plan.micro_batch_size is None
    assert any("no room to test whether the model treats samples apart" in reason for reason in plan.reasons)
    assert any("agree with the plain step's" in reason for reason in plan.reasons)
    monkeypatch.setattr(Predictions, "idle", lambda self: 715 * MIB)
    plan = memfit.plan(model(), X, Y, **RUN | {"batch_size": 4, "budget": 850 * MIB})
    assert any("not compared with the plain step" in reason for reason in plan.reasons)
