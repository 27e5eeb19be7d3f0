"""``memfit.fit`` as a user calls it: every kind of data, every refusal, and a model left as ``model.fit`` leaves it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.backends import keras_seam
from memfit.errors import ArgumentError, BudgetError, DoesNotFitError
from memfit.records import Plan

RNG = np.random.default_rng(5)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = RNG.normal(size=(40, 2)).astype("float32")
IMAGES = RNG.normal(size=(24, 12, 12, 3)).astype("float32")
CLASSES = RNG.integers(0, 3, size=(24,)).astype("int32")
BACKEND = keras.backend.backend()


def mlp(**compile_arguments: Any) -> Any:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"], **compile_arguments)
    return model


def normalized() -> Any:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(3, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    for left, right in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def state(model: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if "function" in name or "step" in name}


# Unchanged where there is no pressure


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_pressure_the_run_is_that_of_model_fit(shuffle: bool) -> None:
    plain, ours = mlp(), mlp()
    expected = plain.fit(X, Y, batch_size=8, epochs=3, verbose=0, shuffle=shuffle)
    keras.utils.set_random_seed(2)
    ours = mlp()
    actual = memfit.fit(ours, X, Y, batch_size=8, epochs=3, verbose=0, shuffle=shuffle)
    assert actual.history == expected.history
    same(plain, ours, 0.0)
    assert actual.memfit.plan.micro_batch_size is None


def test_micro_batches_by_hand_give_the_same_run_shuffled() -> None:
    plain = mlp()
    expected = plain.fit(X, Y, 8, 3, 0, validation_split=0.25)
    ours = mlp()
    actual = memfit.fit(ours, X, Y, 8, 3, 0, validation_split=0.25, micro_batch_size=3)
    same(plain, ours)
    for name, values in expected.history.items():
        np.testing.assert_allclose(actual.history[name], values, rtol=1e-4)
    assert actual.memfit.plan.num_parts == 3
    assert actual.memfit.plan.exact


def test_nothing_of_memfit_stays_on_the_model() -> None:
    model = mlp()
    model.fit(X, Y, verbose=0)
    before = state(model)
    memfit.fit(model, X, Y, micro_batch_size=4, verbose=0)
    assert state(model) == before
    assert type(model).train_step is getattr(model.train_step, "__func__", None)


class Interrupts(keras.callbacks.Callback):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")])
def test_nothing_stays_after_a_failed_or_interrupted_run(error: BaseException) -> None:
    model = mlp()
    model.fit(X, Y, verbose=0)
    before = state(model)
    with pytest.raises(type(error)):
        memfit.fit(model, X, Y, micro_batch_size=4, verbose=0, callbacks=[Interrupts(error)])
    assert state(model) == before
    model.fit(X, Y, verbose=0)


# Every kind of data


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]


class InBatches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return batches()[index]


def as_generator() -> Any:
    while True:
        yield from batches()


def as_tf_data(known: bool = True) -> Any:
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    return dataset.batch(8, drop_remainder=known).prefetch(1)


def as_loader() -> Any:
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=8)


KINDS = {"pydataset": InBatches, "generator": as_generator}
if BACKEND == "tensorflow":
    KINDS |= {"tf.data": as_tf_data, "tf.data, unknown batch": lambda: as_tf_data(False)}
if BACKEND == "torch":
    KINDS |= {"DataLoader": as_loader}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_is_split_alike(kind: str) -> None:
    plain, ours = mlp(), mlp()
    arguments = {"epochs": 2, "steps_per_epoch": 5, "verbose": 0, "shuffle": False}
    plain.fit(X, Y, batch_size=8, **arguments)
    history = memfit.fit(ours, KINDS[kind](), micro_batch_size=3, **arguments)
    same(plain, ours)
    assert history.memfit.plan.batch_size == 8


def test_a_plan_that_was_refused_costs_a_generator_no_batch() -> None:
    plain, ours, generator = mlp(), mlp(), as_generator()
    arguments = {"steps_per_epoch": 5, "verbose": 0, "shuffle": False}
    plain.fit(X, Y, batch_size=8, **arguments)
    memfit.plan(ours, generator, **arguments)
    with pytest.raises(DoesNotFitError):
        memfit.fit(ours, generator, **arguments, budget=1)
    memfit.fit(ours, generator, **arguments)
    same(plain, ours)


def test_class_weight_with_a_data_set() -> None:
    images, labels = IMAGES.reshape(24, -1)[:, :6], CLASSES

    def build() -> Any:
        keras.utils.set_random_seed(4)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    class Labelled(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return images[index * 8 : index * 8 + 8], labels[index * 8 : index * 8 + 8]

    weights = {0: 1.0, 1: 5.0, 2: 0.1}
    plain, ours = build(), build()
    plain.fit(Labelled(), class_weight=weights, verbose=0, shuffle=False)
    memfit.fit(ours, Labelled(), class_weight=weights, verbose=0, shuffle=False, micro_batch_size=3)
    same(plain, ours)


def test_large_arrays_are_streamed_and_give_the_same_run() -> None:
    x = RNG.normal(size=(5000, 600)).astype(
        "float64"
    )  # 24 MB: past the limit, and cast by plain Keras on every backend
    y = x[:, :1].copy()

    def build() -> Any:
        keras.utils.set_random_seed(9)
        model = keras.Sequential([keras.Input((600,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    plain, ours = build(), build()
    arguments = {"batch_size": 256, "epochs": 2, "validation_split": 0.2, "verbose": 0}
    expected = plain.fit(x, y, **arguments)
    keras.utils.set_random_seed(9)
    ours = build()
    actual = memfit.fit(ours, x, y, **arguments)
    assert actual.memfit.plan.streamed
    same(plain, ours)
    np.testing.assert_allclose(actual.history["val_loss"], expected.history["val_loss"], rtol=1e-4)


def test_a_batch_larger_than_the_data_and_nan_in_it_are_accepted() -> None:
    x = X.copy()
    x[3, 2] = np.nan
    history = memfit.fit(mlp(), x, Y, batch_size=1000, verbose=0, micro_batch_size=16)
    assert np.isnan(history.history["loss"][0])
    assert history.memfit.plan.batch_size == 40


def test_an_own_train_step_is_trained_as_it_is_with_a_note() -> None:
    class Own(keras.Sequential):
        def train_step(self, *args: Any) -> Any:
            return super().train_step(*args)

    keras.utils.set_random_seed(2)
    model = Own([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    history = memfit.fit(model, X, Y, verbose=0)
    assert "own train_step" in str(history.memfit.plan)
    with pytest.raises(ArgumentError, match="own train_step"):
        memfit.fit(model, X, Y, verbose=0, micro_batch_size=2)


# Separability


def test_a_model_that_mixes_samples_is_not_split_without_allow() -> None:
    model = normalized()
    weights = [w.copy() for w in model.get_weights()]
    with pytest.raises(ArgumentError, match=r"mixes samples.*BatchNormalization"):
        memfit.fit(model, IMAGES, CLASSES, batch_size=12, micro_batch_size=4, verbose=0)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    history = memfit.fit(
        model, IMAGES, CLASSES, batch_size=12, micro_batch_size=4, verbose=0, allow={"inexact_micro_batch"}
    )
    assert not history.memfit.plan.exact


def contrastive(y_true: Any, y_pred: Any) -> Any:
    """Each sample against all the others of its batch."""
    similar = keras.ops.matmul(y_pred, keras.ops.transpose(y_pred))
    return keras.ops.mean(keras.ops.logsumexp(similar, axis=-1))


def test_a_loss_that_mixes_samples_is_found_without_any_class_name() -> None:
    model = mlp()
    model.compile("adam", contrastive)
    with pytest.raises(ArgumentError, match="mixes samples"):
        memfit.fit(model, X, Y, batch_size=8, micro_batch_size=4, verbose=0)


def test_a_frozen_batch_normalization_is_split() -> None:
    model = normalized()
    model.layers[1].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    assert memfit.fit(model, IMAGES, CLASSES, batch_size=12, micro_batch_size=4, verbose=0).memfit.plan.exact


def test_dropout_does_not_hide_that_samples_are_apart() -> None:
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse")
    assert memfit.fit(model, X, Y, micro_batch_size=8, verbose=0).memfit.plan.exact
    assert model.layers[1].rate == 0.5


class OwnNoise(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator) if training else x


@pytest.mark.parametrize("mixing", [False, True])
def test_random_layers_of_the_users_own_are_told_from_mixing_ones(mixing: bool) -> None:
    layers = [keras.layers.Dense(8), OwnNoise(), *([keras.layers.BatchNormalization()] if mixing else [])]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(2)])
    model.compile("adam", "mse")
    if mixing:
        with pytest.raises(ArgumentError, match="mixes samples"):
            memfit.fit(model, X, Y, micro_batch_size=8, verbose=0)
    else:
        assert "random draws" in str(memfit.fit(model, X, Y, micro_batch_size=8, verbose=0).memfit.plan)


def test_losses_added_by_layers_are_found_to_be_sums_or_means() -> None:
    class Adds(keras.layers.Layer):
        def __init__(self, reduce: Any) -> None:
            super().__init__()
            self.reduce = reduce

        def call(self, x: Any) -> Any:
            self.add_loss(0.1 * self.reduce(keras.ops.square(x)))
            return x

    for reduce in (keras.ops.sum, keras.ops.mean):

        def build(reduce: Any = reduce) -> Any:
            keras.utils.set_random_seed(4)
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), Adds(reduce), keras.layers.Dense(2)])
            model.compile("sgd", "mse")
            return model

        plain, ours = build(), build()
        plain.fit(X, Y, batch_size=16, verbose=0, shuffle=False)
        memfit.fit(ours, X, Y, batch_size=16, verbose=0, shuffle=False, micro_batch_size=5)
        same(plain, ours)


# Refusals, before anything is touched

REFUSALS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "budget zero": (BudgetError, "budget", {"budget": 0}),
    "budget negative": (BudgetError, "-5", {"budget": -5}),
    "budget unreadable": (BudgetError, "a lot", {"budget": "a lot"}),
    "budget beyond the machine": (BudgetError, "TiB|900", {"budget": "900 TiB"}),
    "micro_batch_size 0": (ArgumentError, "micro_batch_size=0", {"micro_batch_size": 0}),
    "micro_batch_size 1.5": (ArgumentError, "1.5", {"micro_batch_size": 1.5}),
    "micro_batch_size True": (ArgumentError, "True", {"micro_batch_size": True}),
    "allow unknown": (ArgumentError, "magic", {"allow": {"magic"}}),
    "plan is none": (ArgumentError, "Plan", {"plan": "fast"}),
    "unknown argument": (ArgumentError, "batchsize", {"batchsize": 3}),
    "empty": (ArgumentError, "empty", {"x": X[:0], "y": Y[:0]}),
    "lengths": (ArgumentError, "x: 40, y: 39", {"y": Y[:39]}),
    "weights of another length": (ArgumentError, "sample_weight: 7", {"sample_weight": np.ones(7)}),
    "shape": (ArgumentError, r"\(5,\)", {"x": X[:, :5]}),
    "structure": (ArgumentError, "2 arrays", {"x": [X, X]}),
    "target structure": (ArgumentError, "does not fit", {"y": {"a": Y, "b": Y}}),
    "no data": (ArgumentError, "x=None", {"x": None, "y": None}),
    "empty generator": (ArgumentError, "empty", {"x": (i for i in ()), "y": None}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_work_is_refused_before_training(name: str) -> None:
    error, text, changes = REFUSALS[name]
    model = mlp()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(error, match=text):
        memfit.fit(model, **{"x": X, "y": Y, "verbose": 0, **changes})
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.fit(X, Y, verbose=0)


def test_an_uncompiled_model_and_what_is_no_model_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"model\.compile"):
        memfit.fit(keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)]), X, Y)
    with pytest.raises(ArgumentError, match="Keras"):
        memfit.fit("model", X, Y)


# Plans


def test_a_plan_is_followed_and_must_be_for_this_batch() -> None:
    model = mlp()
    plan = memfit.plan(model, X, Y, batch_size=8, micro_batch_size=4)
    again = Plan.from_json(plan.to_json())
    assert memfit.fit(model, X, Y, batch_size=8, plan=again, verbose=0).memfit.plan.micro_batch_size == 4
    with pytest.raises(ArgumentError, match="batches of 8"):
        memfit.fit(model, X, Y, batch_size=16, plan=plan, verbose=0)
    with pytest.raises(ArgumentError, match="not both"):
        memfit.fit(model, X, Y, batch_size=8, plan=plan, micro_batch_size=2, verbose=0)


def big_cnn() -> tuple[Any, np.ndarray, np.ndarray]:
    keras.utils.set_random_seed(2)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((96, 96, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.broadcast_to(RNG.normal(size=(1, 96, 96, 3)).astype("float32"), (256, 96, 96, 3))
    return model, x, np.zeros((256,), "int32")


def test_the_plan_under_a_budget_splits_and_its_prediction_holds() -> None:
    model, x, y = big_cnn()
    held = memfit.plan(model, x, y, batch_size=256).budget  # also warms the framework up
    assert held.host_bytes > 0
    base = memfit.budget().host_bytes
    del base
    from memfit import budgeting

    budget = budgeting.reading().host_bytes + 700 * 2**20
    history = memfit.fit(model, x, y, batch_size=256, budget=budget, verbose=0)
    report = history.memfit
    assert report.plan.micro_batch_size is not None
    assert report.plan.peak is not None
    assert report.plan.peak.upper <= budget
    assert report.peak.host_bytes <= report.plan.peak.upper
    assert report.profile is not None
    assert report.profile.peak.upper > budget


def test_what_cannot_fit_names_the_consumers_and_the_budget_that_would_do() -> None:
    model, x, y = big_cnn()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(DoesNotFitError, match=r"Conv2D|optimizer state|gradients") as caught:
        memfit.fit(model, x, y, batch_size=256, budget="200 MiB", verbose=0)
    assert ("compiling its step" in str(caught.value)) == (keras.backend.backend() == "jax")
    assert "smallest budget that would do is" in str(caught.value)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_profile_counts_exactly_what_can_be_counted() -> None:
    model = mlp()
    profile = memfit.profile(model, X, Y, batch_size=8)
    parameters = 6 * 8 + 8 + 8 * 2 + 2
    assert profile.gradients == 4 * parameters
    assert profile.optimizer_state >= 8 * parameters
    assert profile.inputs == 4 * 8 * (6 + 2)
    assert {c.kind: c.bytes for c in profile.layers}["Dense"] in (8 * 8 * 4, 8 * 2 * 4)
    assert keras_seam.is_built(model)
    assert dataclasses.replace(profile).to_json()
    assert memfit.profile(mlp(), batch_size=8).gradients == 4 * parameters
