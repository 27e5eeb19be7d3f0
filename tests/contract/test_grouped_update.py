"""Updates of all weights at once, a group after the other: the same to the bit, without temporary arrays of them all."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends
from memfit.backends import keras_optimizer
from memfit.levers import grouped_update
from memfit.levers.pulled import pulled
from memfit.levers.ways import ways
from memfit.predicting import Predictions
from memfit.profiling import cache
from memfit.records import Budget, Levers, Plan, TensorSpec

GROUPED = Levers(grouped_update=True)
FEATURES = 32
AT_ONCE = backends.current().step_costs().update_group_bytes is not None
at_once = pytest.mark.skipif(not AT_ONCE, reason="where optimizers update all weights at once")

OPTIMIZERS = {
    "Adadelta": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True, "gradient_accumulation_steps": 2},
    "AdamW": {"use_ema": True, "clipnorm": 1.0},
    "Adamax": {},
    "Lion": {},
    "RMSprop": {"centered": True, "momentum": 0.9},
}


def model_of(optimizer: Any, *, units: int = 80) -> Any:
    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(units, activation="tanh") for _ in range(3)]
    model = keras.Sequential([keras.Input((FEATURES,)), *body, keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def fitted(model: Any, levers: Levers) -> list[Any]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, FEATURES)).astype("float32"), rng.normal(size=(48, 1)).astype("float32")
    plan = Plan(16, None, Budget(2**40, "asked for"), levers=levers)
    memfit.fit(model, x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, plan=plan)
    return [*model.get_weights(), *(np.asarray(value) for value in model.optimizer.variables)]


@at_once
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_same_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With groups of several weights, and with rows of one."""
    group_bytes = 2**13
    made = [getattr(keras.optimizers, name)(0.01, **OPTIMIZERS[name]) for _ in range(2)]
    monkeypatch.setattr(grouped_update, "_group_bytes", lambda backend: group_bytes)
    plain, grouped = fitted(model_of(made[0]), Levers()), fitted(model_of(made[1]), GROUPED)
    for a, b in zip(plain, grouped, strict=True):
        np.testing.assert_array_equal(a, b)


@at_once
def test_a_group_at_a_time_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_update, "_group_bytes", lambda backend: 2**14)
    model, seen = model_of("adam"), []
    update = model.optimizer._parallel_update_step

    def watched(gradients: Any, variables: Any, learning_rate: Any) -> None:
        seen.append(sum(gradient.nbytes for gradient in gradients))
        update(gradients, variables, learning_rate)

    keras_optimizer.set_attribute(model.optimizer, "_parallel_update_step", watched)
    fitted(model, GROUPED)
    assert max(seen) <= 2**14
    assert len(seen) > 2 * 6


@at_once
def test_what_an_update_takes_is_not_counted_where_it_goes_in_groups() -> None:
    model = model_of("adam", units=2000)
    spec = (TensorSpec((4, FEATURES), "float32"), TensorSpec((4, 1), "float32"), None)
    prediction = Predictions(model, spec, backends.current(), quiet=True)
    plain, grouped = (prediction.peak(None, levers).bytes for levers in (Levers(), GROUPED))
    assert plain - grouped > 2 * prediction.gradients


@pytest.mark.parametrize("lever", [*([GROUPED] if AT_ONCE else []), Levers(own_pages=True)])
def test_what_is_kept_on_disk_of_the_plain_step_is_not_taken_for_it(
    lever: Levers, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    model, backend = model_of("adam"), backends.current()
    spec = (TensorSpec((4, FEATURES), "float32"), TensorSpec((4, 1), "float32"), None)
    plain = cache.key(model, spec, None, "train", backend)
    with pulled(model, lever, backend):
        assert plain != cache.key(model, spec, None, "train", backend)
    assert plain == cache.key(model, spec, None, "train", backend)
    assert plain is not None


@at_once
def test_a_batch_that_cannot_be_split_is_updated_in_groups_where_that_is_enough() -> None:
    model = model_of("adam", units=2000)
    x, y = np.ones((8, FEATURES), "float32"), np.ones((8, 1), "float32")
    spec = (TensorSpec((1, FEATURES), "float32"), TensorSpec((1, 1), "float32"), None)
    prediction = Predictions(model, spec, backends.current(), quiet=True)
    prediction.peak(None)
    backends.current().release()  # leaves the process as a plan finds it
    between = (prediction.peak(None).upper + prediction.peak(None, GROUPED).upper) // 2
    plan = memfit.plan(model, x, y, batch_size=1, budget=between, probe=False)
    assert plan.levers == GROUPED
    assert plan.exact
    assert plan.num_parts == 1


@pytest.mark.parametrize("optimizer", ["sgd", "nadam", "muon"])
def test_other_optimizers_are_left_alone(optimizer: str) -> None:
    model, backend = model_of("adam"), backends.current()
    model.compile(optimizer, "mse")
    assert all(not way.grouped_update for way, _ in ways(model, backend, Levers()))
    with pytest.raises(ValueError, match="Received: "), pulled(model, GROUPED, backend):
        pass


def test_a_users_own_kind_of_adam_is_left_alone() -> None:
    class Mine(keras.optimizers.Adam):
        pass

    model = model_of(Mine())
    assert not grouped_update.is_possible(model, backends.current())


def test_where_there_is_nothing_to_take_apart_plans_are_as_they_were() -> None:
    found = [way for way, _ in ways(model_of("adam"), backends.current(), Levers())]
    assert [way.grouped_update for way in found] == [AT_ONCE] * len(found)
    found = [way for way, _ in ways(model_of("adam"), backends.current(), Levers(optimizer_state="adam8bit"))]
    assert not any(way.grouped_update for way in found)


class Watched(keras.layers.Dense):
    """Tells whether its kernel has a gradient as its forward pass begins."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        if training:
            self.seen.append(getattr(self.kernel.value, "grad", None) is not None)
        return super().call(inputs)


@at_once
def test_the_gradients_of_the_step_before_are_let_go_before_the_forward_pass() -> None:
    seen: dict[bool, list[bool]] = {}
    for grouped in (False, True):
        layer = Watched(1)
        layer.seen = []
        model = keras.Sequential([keras.Input((FEATURES,)), layer])
        model.compile("adam", "mse")
        fitted(model, Levers(grouped_update=grouped))
        seen[grouped] = layer.seen
    assert any(seen[False])
    assert not any(seen[True])
