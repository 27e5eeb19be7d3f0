"""Plans of more than one lever: found between budgets, proved on the model, carried out to the weights of ``model.fit``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import arranging, backends, budgeting, deciding, units
from memfit.arranging import Arrangements, Decision, Request
from memfit.budgeting.ceiling import Ceiling
from memfit.errors import ArgumentError, DoesNotFitError
from memfit.levers import micro_batch, remat, verification, without_xla
from memfit.planning import planner
from memfit.predicting import Predictions
from memfit.profiling import batches as batches_of
from memfit.profiling import peak
from memfit.records import Budget, Levers, Plan, Remat, Segment, Split, TensorSpec
from memfit.reporting import page
from memfit.tiny_batches import TinyBatches

RNG = np.random.default_rng(3)
BATCH = 320
SHAPE = (512, 8)
X = RNG.normal(size=(2 * BATCH, *SHAPE)).astype("float32")
Y = RNG.integers(0, 3, size=(2 * BATCH,)).astype("int32")
RUN: dict[str, Any] = {"batch_size": BATCH, "verbose": 0, "shuffle": False}


def normalized(blocks: int = 7, dropout: float = 0.0) -> Any:
    """A model whose batch may not be split: layers mix its samples."""
    keras.utils.set_random_seed(4)
    layers = keras.layers
    body = [
        layer
        for _ in range(blocks)
        for layer in (
            layers.Dense(32),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Dropout(dropout, seed=1),
        )
    ]
    head = [layers.GlobalAveragePooling1D(), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input(SHAPE), *body, *head])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def between(model: Any) -> int:
    """A budget in the middle of what the plain step takes and what recomputing as much as helps does."""
    backends.current().release()  # what earlier runs have left must not go away between this and the plan
    memfit.profile(model, X, Y, batch_size=BATCH)  # builds it and its optimizer
    micro_batch.separability(model, batch(), backends.current())  # JAX keeps hundreds of MiB of its first time
    spec = (TensorSpec((BATCH, *SHAPE), "float32"), TensorSpec((BATCH,), "int32"), None)
    predictions = Predictions(model, spec, backends.current(), quiet=True)
    smallest = Levers(remat=remat.ladder(remat.chain(model, spec))[-1])
    return (predictions.peak(None).upper + predictions.peak(None, smallest).upper) // 2


def same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    for left, right in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_may_not_be_split_is_recomputed_to_the_weights_of_model_fit(dropout: float) -> None:
    plain, ours = normalized(dropout=dropout), normalized(dropout=dropout)
    expected = plain.fit(X, Y, **RUN)
    actual = memfit.fit(ours, X, Y, **RUN, budget=between(ours))
    plan = actual.memfit.plan
    assert plan.levers.remat is not None
    assert plan.micro_batch_size is None
    assert plan.exact
    assert plan.relative_time != 1.0
    held_as_planned(actual.memfit)
    assert "exact: gradients and state agree with the plain step's" in str(plan)
    same(plain, ours)
    assert actual.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-5)
    assert "call" not in vars(ours)


def held_as_planned(report: Any) -> None:
    """The report has the bytes by layer of the step that was trained: of what is recomputed, little is there at the peak."""
    plain, planned = report.profile, report.planned
    assert planned.peak == report.plan.peak
    assert planned.batch_size == plain.batch_size == BATCH
    assert (planned.weights, planned.base) == (plain.weights, plain.base)
    assert {layer.name for layer in planned.layers} == {layer.name for layer in plain.layers}
    assert planned.activations < 0.9 * plain.activations
    assert f"{report.plan.levers.text}." in page.of_run(report)


@pytest.mark.skipif(not backends.current().bounds_host, reason="where nothing fails before the kernel ends the process")
def test_the_machines_own_memory_is_planned_up_to_a_narrower_margin_than_a_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step that takes more fails there, and is tried again smaller: with the whole margin."""
    model = normalized()
    smallest = between(model)  # leaves the process as a plan finds it
    spec = (TensorSpec((BATCH, *SHAPE), "float32"), TensorSpec((BATCH,), "int32"), None)
    whole = Predictions(model, spec, backends.current(), quiet=True).peak(None)
    assert whole.spare > 0
    ceiling = Ceiling(whole.upper - whole.spare // 4, "for this test")
    assert ceiling.bytes > smallest
    monkeypatch.setattr(budgeting.host, "host_ceiling", lambda **_: ceiling)
    ours, asked = (memfit.plan(model, X, Y, **RUN, probe=False, budget=given) for given in (None, ceiling.bytes))
    assert not ours.levers
    assert asked.levers
    request = Request(Budget(ceiling.bytes, ""), frozenset(), probe=False, quiet=True, bounded=True)
    found, _ = batches_of.described({"x": X, "y": Y, "batch_size": BATCH})
    decision = deciding.decide(model, found, request, backend=backends.current())
    assert not decision.plan.levers
    smaller = deciding.smaller(decision, model, found, request, backend=backends.current())
    assert smaller is not None
    assert smaller.plan.levers == asked.levers, "not less than what the whole margin asks for"

    arrangements = Arrangements(model, found, request, backends.current())
    assert arrangements.prediction.caution == 0.0
    held = ceiling.bytes
    monkeypatch.setattr(peak, "on_top_of_now", lambda step, **_: dataclasses.replace(step, bytes=step.bytes + held))
    deciding.smaller(
        dataclasses.replace(decision, arrangements=arrangements), model, found, request, backend=backends.current()
    )
    assert arrangements.prediction.caution > 0.0, "also where the step would fit no longer, whatever its margin is"


def test_what_tests_leave_with_the_process_is_reckoned_with_once_where_steps_use_it() -> None:
    model = normalized(blocks=1)
    spec = (TensorSpec((BATCH, *SHAPE), "float32"), TensorSpec((BATCH,), "int32"), None)
    backend = backends.current()
    memfit.profile(model, X, Y, batch_size=BATCH)
    prediction = Predictions(model, spec, backend, quiet=True)
    before, idle, left = prediction.peak(None), prediction.idle(), []
    tensors = before.bytes - idle - before.fixed
    with prediction.testing():
        left.append(np.ones(2**26, "uint8"))
    counted = prediction.peak(None).bytes - before.bytes
    expected = max(0, 2**26 - tensors) if backend.keeps_freed(model) else 2**26
    assert counted == pytest.approx(expected, abs=2**23)
    assert left


def test_the_batch_that_an_epoch_ends_with_is_asked_about_where_freed_memory_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, asked = normalized(blocks=1), []
    backend, analysed = backends.current(), peak.step_bytes
    monkeypatch.setattr(peak, "step_bytes", lambda *of, rest, **more: asked.append(rest) or analysed(*of, **more))
    found, _ = batches_of.described({"x": X[: BATCH + 3], "y": Y[: BATCH + 3], "batch_size": BATCH})
    deciding.build_ahead(model, found)
    Arrangements(model, found, Request(Budget(2**40, ""), frozenset(), quiet=True), backend).prediction.peak(None)
    assert asked == [3 if backend.keeps_freed(model) else 0]


def test_a_plan_goes_through_json_and_is_followed() -> None:
    plain, ours = normalized(), normalized()
    plan = memfit.plan(ours, X, Y, **RUN, budget=between(ours))
    plain.fit(X, Y, **RUN)
    report = memfit.fit(ours, X, Y, **RUN, plan=Plan.from_json(plan.to_json())).memfit
    assert report.plan.levers == plan.levers
    assert plan.levers
    same(plain, ours)


def test_a_plan_for_another_model_is_refused_and_nothing_changes() -> None:
    model = normalized()
    other = normalized(blocks=1)
    plan = Plan(BATCH, None, Budget(1, "asked for"), levers=Levers(remat=Remat((Segment(0, 25),))))
    before = other.get_weights()
    with pytest.raises(ArgumentError, match="not one for this model"):
        memfit.fit(other, X, Y, **RUN, plan=plan)
    for left, right in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)
    assert "call" not in vars(other)
    assert "call" not in vars(model)


def batch() -> Any:
    return X[:5], Y[:5], None


def all_recomputed(model: Any) -> Levers:
    spec = (TensorSpec((5, *SHAPE), "float32"), TensorSpec((5,), "int32"), None)
    return Levers(remat=remat.everything(remat.chain(model, spec), 4))


def test_a_lever_that_is_exact_is_found_to_be() -> None:
    model = normalized(dropout=0.3)
    before = model.get_weights()
    found = verification.verified(model, batch(), all_recomputed(model), None, backend=backends.current())
    assert found.agrees
    assert found.difference < 1e-5
    for left, right in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("what", ["gradients", "state"])
def test_a_lever_that_is_not_exact_is_found_out(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    model = normalized(blocks=2)
    layer = model.layers[1 if what == "state" else -1]

    @contextlib.contextmanager
    def wrong(model: Any, levers: Levers, backend: Any) -> Iterator[None]:
        """A moving average that is moved too far, or an output that is too large."""
        if what == "state":
            layer.momentum = 0.5
        else:
            layer.activation = lambda x: 0.9 * keras.ops.softmax(x) + 0.03
        yield
        layer.momentum, layer.activation = 0.99, keras.activations.softmax

    monkeypatch.setattr(verification, "pulled", wrong)
    found = verification.verified(model, batch(), all_recomputed(model), None, backend=backends.current())
    assert not found.agrees
    assert found.difference > 1e-4
    assert "dropped" in found.reason


def test_a_plan_that_fails_its_proof_is_dropped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = normalized()
    failed = verification.Verification(False, 0.5, "recomputation: dropped, gradients differ by 5.0e-01")
    monkeypatch.setattr(arranging, "verified", lambda *_, **__: failed)
    with pytest.raises(DoesNotFitError, match=r"dropped, gradients differ by 5\.0e-01"):
        memfit.fit(model, X, Y, **RUN, budget=between(model))
    split = memfit.plan(model, X, Y, **RUN, budget=between(model), allow={"inexact_micro_batch"})
    assert split.micro_batch_size is not None
    assert not split.levers
    assert not split.exact


@pytest.mark.parametrize("gone_with", ["release", "compiling_bytes"])
def test_what_the_program_is_done_with_goes_before_it_is_said_to_be_in_the_way(
    monkeypatch: pytest.MonkeyPatch, gone_with: str
) -> None:
    """A dead model is a cycle, which Python keeps until it looks for such; programs go as the compiler is asked about."""
    model, backend = normalized(blocks=1), backends.current()
    memfit.profile(model, X, Y, batch_size=BATCH)
    garbage = [2**40]
    monkeypatch.setattr(backend, "release", garbage.clear if gone_with == "release" else lambda: None)
    monkeypatch.setattr(
        backend, "compiling_bytes", lambda *_: garbage.clear() or 2**29 if gone_with == "compiling_bytes" else 0
    )
    monkeypatch.setattr(
        peak, "on_top_of_now", lambda step, **_: dataclasses.replace(step, bytes=step.bytes + sum(garbage))
    )
    plan = memfit.plan(model, X, Y, **RUN, budget=2**32)
    assert plan.micro_batch_size is None
    assert not garbage


def test_a_step_that_fits_by_far_is_refused_where_compiling_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, backend = normalized(blocks=1), backends.current()
    memfit.profile(model, X, Y, batch_size=BATCH)
    spec = (TensorSpec((BATCH, *SHAPE), "float32"), TensorSpec((BATCH,), "int32"), None)
    prediction = Predictions(model, spec, backend, quiet=True)
    monkeypatch.setattr(arranging, "_ROOM_TO_COMPILE", 2**50)
    budget = 3 * prediction.crude().upper
    assert memfit.plan(model, X, Y, **RUN, budget=budget).reasons[0].startswith("it fits by far")
    monkeypatch.setattr(backend, "compiling_bytes", lambda *_: budget)
    if without_xla.cost(model, backend) is not None:
        assert memfit.plan(model, X, Y, **RUN, budget=budget).levers.xla_off
        return
    with pytest.raises(DoesNotFitError, match="compiling its step takes about"):
        memfit.plan(model, X, Y, **RUN, budget=budget)


def test_planning_again_after_a_failure_strictly_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "on_top_of_now", lambda step, **_: step)  # what the process holds moves by itself
    model, backend = normalized(blocks=3), backends.current()
    found, _ = batches_of.described({"x": X, "y": Y, "batch_size": BATCH})
    request = Request(
        budget=Budget(2**40, "asked for"), allow=frozenset({"inexact_micro_batch"}), probe=False, quiet=True
    )
    decision = deciding.decide(model, found, request, backend=backend)
    predictions = Predictions(model, found.spec, backend, quiet=True)
    peaks = []
    while decision is not None and len(peaks) < 4:
        assert decision.split is None or isinstance(decision.split, Split)
        peaks.append(predictions.peak(decision.split, decision.plan.levers).upper)
        decision = deciding.smaller(decision, model, found, request, backend=backend)
    assert len(peaks) > 2
    assert peaks == sorted(set(peaks), reverse=True)


@pytest.mark.parametrize(("optimizer", "slots"), [("adam", 2), ("adagrad", 1), ("lion", 1), ("sgd", 0)])
def test_slots_above_the_budget_are_refused_before_they_are_made(optimizer: str, slots: int) -> None:
    model = keras.Sequential([keras.Input((1024,)), keras.layers.Dense(4096), keras.layers.Dense(1)])
    weights = 4 * (1024 * 4096 + 4096 + 4096 + 1)
    model.compile(optimizer, "mse")
    backends.current().release()
    budget = budgeting.reading().host_bytes + weights // 2
    with pytest.raises(DoesNotFitError) as refused:
        memfit.fit(model, np.ones((8, 1024), "float32"), np.ones((8, 1), "float32"), verbose=0, budget=budget)
    if slots:
        assert f"will hold {units.text(slots * weights)}" in str(refused.value)
    assert model.optimizer.built == (not slots)


def test_after_a_failure_no_model_is_tested_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model = normalized()
    found, _ = batches_of.described({"x": X, "y": Y, "batch_size": BATCH})
    deciding.build(model, found.spec)
    request = Request(Budget(2**40, ""), frozenset(), quiet=True)
    monkeypatch.setattr(TinyBatches, "sample", lambda self, fewest: None)
    monkeypatch.setattr(micro_batch, "separability", lambda *_: pytest.fail("it was tested"))
    whole = Decision(planner.plain(BATCH, request.budget, None), halving=True)
    assert deciding.smaller(whole, model, found, request, backend=backends.current()) is None
