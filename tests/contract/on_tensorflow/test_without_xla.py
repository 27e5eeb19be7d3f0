"""Steps of a model that is compiled with XLA, made without it: the weights of ``model.fit``, and no compiler without room."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("for the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

import memfit
from memfit import backends
from memfit.backends import keras_seam
from memfit.backends.on_tensorflow import analysis, xla_buffers
from memfit.errors import DoesNotFitError
from memfit.levers import remat, without_xla
from memfit.levers.pulled import pulled
from memfit.predicting import Predictions
from memfit.probing import trial
from memfit.records import Budget, Estimate, Levers, Plan, Split, TensorSpec
from memfit.units import MIB

RNG = np.random.default_rng(5)
BATCH = 256
X = RNG.normal(size=(2 * BATCH, 128, 8)).astype("float32")
Y = RNG.integers(0, 3, size=(2 * BATCH,)).astype("int32")
SPEC = TensorSpec((BATCH, 128, 8), "float32"), TensorSpec((BATCH,), "int32"), None
RUN: dict[str, Any] = {"batch_size": BATCH, "verbose": 0, "shuffle": False}


def jitted(dropout: float = 0.0, *, jit: bool = True) -> Any:
    keras.utils.set_random_seed(4)
    layers = keras.layers
    body = [
        layer
        for _ in range(2)
        for layer in (layers.Dense(64, activation="gelu"), layers.LayerNormalization(), layers.Dropout(dropout, seed=1))
    ]
    head = [layers.GlobalAveragePooling1D(), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input(X.shape[1:]), *body, *head])
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    return model


def same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    for left, right in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step that Keras makes, whether XLA is to compile it."""
    found: list[bool] = []
    plain = tf.function

    def function(func: Any = None, **options: Any) -> Any:
        if getattr(func, "__name__", "") == "one_step_on_data":
            found.append(options["jit_compile"])
        return plain(func, **options)

    monkeypatch.setattr(tf, "function", function)
    return found


@pytest.mark.parametrize(
    ("arranged", "size", "dropout"),
    [("plain", None, 0.0), ("plain", 64, 0.0), ("remat", None, 0.0), ("plain", None, 0.3), ("remat", None, 0.3)],
)
def test_the_weights_are_those_of_model_fit(arranged: str, size: int | None, dropout: float, made: list[bool]) -> None:
    draws_otherwise = dropout > 0  # under XLA TensorFlow's generators give other numbers for the same seed
    plain, ours = jitted(dropout, jit=not draws_otherwise), jitted(dropout)
    keras_seam.symbolic_build(ours, SPEC)
    chosen = remat.ladder(remat.chain(ours, SPEC))[-1] if arranged == "remat" else None
    plan = Plan(BATCH, size, Budget(2**40, "asked for"), levers=Levers(chosen, xla_off=True))
    plan = Plan.from_json(plan.to_json())
    more = {"epochs": 2, "validation_data": (X[:64], Y[:64])}
    one = plain.fit(X, Y, **RUN, **more)
    other = memfit.fit(ours, X, Y, **RUN, **more, plan=plan)
    assert made[:2] == 2 * [not draws_otherwise]  # trained, and validated
    assert len(made) >= 4
    assert set(made[2:]) == {False}
    same(plain, ours)
    for name, values in one.history.items():
        assert other.history[name] == pytest.approx(values, rel=1e-4)


def test_the_model_is_compiled_as_it_was_afterwards(made: list[bool]) -> None:
    model = jitted()
    model.fit(X, Y, **RUN)
    model.evaluate(X, Y, batch_size=BATCH, verbose=0)
    train, test, weights = model.train_function, model.test_function, model.get_weights()

    def fail(batch: int, logs: Any = None) -> None:
        raise KeyError("the user's own")

    del made[:]
    plan = Plan(BATCH, 64, Budget(2**40, "asked for"), levers=Levers(xla_off=True))
    with pytest.raises(KeyError, match="the user's own"):
        memfit.fit(model, X, Y, **RUN, plan=plan, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=fail)])
    assert set(made) == {False}
    assert model.jit_compile is True
    assert (model.train_function, model.test_function) == (train, test)
    assert not any(name in vars(model) for name in ("train_step", "test_step", "predict_step"))
    assert any(not np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    model.fit(X, Y, **RUN)
    assert made[-1] is True


def test_the_analysis_is_of_the_step_that_runs() -> None:
    model, backend = jitted(), backends.current()
    keras_seam.symbolic_build(model, SPEC)
    assert backend.step_bytes(model, SPEC, None).source == "XLA buffer assignment"
    with pulled(model, Levers(xla_off=True), backend):
        assert backend.step_bytes(model, SPEC, None).source == "graph liveness"
        assert backend.step_bytes(model, SPEC, Split(64)).source == "graph liveness"
        assert backend.compiling_bytes(model, SPEC) == 0
    assert backend.compiling_bytes(model, SPEC) > 0


# The planner


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What XLA was asked to compile, each time."""
    found: list[str] = []
    plain = xla_buffers.compiled_bytes

    def compiled_bytes(function: Any, specs: Any) -> int | None:
        found.append("compiled")
        return plain(function, specs)

    monkeypatch.setattr(xla_buffers, "compiled_bytes", compiled_bytes)
    return found


def room(model: Any) -> tuple[int, int]:
    """What is held, and what the step takes without XLA."""
    backends.current().release()
    keras_seam.symbolic_build(model, SPEC)
    predictions = Predictions(model, SPEC, backends.current(), quiet=True)
    idle = predictions.idle()
    return idle, predictions.peak(None, Levers(xla_off=True)).upper - idle


def test_a_step_that_xla_would_not_leave_the_room_for_is_made_without(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str], made: list[bool]
) -> None:
    plain, ours = jitted(), jitted()
    idle, step = room(ours)
    monkeypatch.setattr(analysis, "compiling_bytes", lambda model: 64 * step if model.jit_compile else 0)
    del compiled[:]
    report = memfit.fit(ours, X, Y, **RUN, budget=idle + 2 * step, validation_data=(X[:64], Y[:64])).memfit
    assert set(made) == {False}
    plain.fit(X, Y, **RUN)
    assert report.plan.levers == Levers(xla_off=True)
    assert report.plan.micro_batch_size is None
    assert report.plan.exact
    assert "compiled without XLA" in report.plan.summary
    assert compiled == []
    same(plain, ours)


def test_parts_take_more_to_compile_than_the_plain_step(monkeypatch: pytest.MonkeyPatch, compiled: list[str]) -> None:
    """The plain step may be compiled, in a room that is too small for it; one in parts may not."""
    model = jitted()
    idle, step = room(model)
    monkeypatch.setattr(without_xla, "cost", lambda *_: 5.0)
    monkeypatch.setattr(analysis, "_XLA_COMPILING", 64 * step)
    monkeypatch.setattr(analysis, "compiling_bytes", lambda model: step if model.jit_compile else 0)
    del compiled[:]
    plan = memfit.plan(model, X, Y, batch_size=BATCH, budget=idle + 3 * step // 2)
    assert plan.levers == Levers(xla_off=True)
    assert compiled == ["compiled"]


def test_where_nothing_fits_it_is_refused_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    model = jitted()
    idle, step = room(model)
    monkeypatch.setattr(analysis, "compiling_bytes", lambda model: 64 * step if model.jit_compile else 0)
    del compiled[:]
    with pytest.raises(DoesNotFitError, match="compiled without XLA"):
        memfit.plan(model, X, Y, batch_size=BATCH, budget=idle + MIB)
    assert compiled == []


def test_with_room_it_trains_as_it_is_compiled() -> None:
    model = jitted()
    idle, step = room(model)
    for share, expected in ((1.25, Levers(xla_off=True)), (20.0, Levers())):
        plan = memfit.plan(model, X, Y, batch_size=BATCH, budget=int(idle + share * step))
        assert (plan.levers, plan.micro_batch_size) == (expected, None)
        assert plan.peak.upper <= plan.budget.limiting_bytes


def test_what_a_trial_teaches_with_xla_says_nothing_of_steps_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "")
    model, without = jitted(), Levers(xla_off=True)
    keras_seam.symbolic_build(model, SPEC)
    prediction = Predictions(model, SPEC, backends.current(), quiet=True)
    sources = [prediction.peak(None, levers).source for levers in (Levers(), without)]
    monkeypatch.setattr(trial, "step_bytes", lambda *_, **__: Estimate(2**24, 0, "a trial"))
    assert prediction.confirmed(None, without) is not None
    corrected = [prediction.peak(None, levers).source for levers in (Levers(), without)]
    assert corrected == [sources[0], f"{sources[1]}, corrected by a trial"]
