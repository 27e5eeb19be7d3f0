"""The exactness table: weights and logs after several micro-batched steps equal plain ``model.fit``'s, on every backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from memfit import backends
from memfit.backends import keras_seam
from memfit.records import Split, TensorSpec

N = 37  # not a multiple of the batch, nor the batch of the micro-batch: every tail is ragged
RNG = np.random.default_rng(7)
X = RNG.normal(size=(N, 6)).astype("float32")
Y = RNG.normal(size=(N, 2)).astype("float32")
IMAGES = RNG.normal(size=(N, 8, 8, 3)).astype("float32")
CLASSES = RNG.integers(0, 3, size=(N,)).astype("int32")
TOKENS = RNG.integers(0, 9, size=(N, 7)).astype("int32")
TAGS = RNG.integers(0, 4, size=(N, 7)).astype("int32")
WEIGHTS = RNG.uniform(0.1, 3.0, size=(N,)).astype("float32")


@dataclasses.dataclass(frozen=True)
class Case:
    build: Callable[[], Any]
    x: Any
    y: Any
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)
    split: dict[str, str] = dataclasses.field(default_factory=dict)


def mlp(loss: Any = "mse", optimizer: Any = "adam", outputs: int = 2, **compile_arguments: Any) -> Any:
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(outputs)]
    )
    model.compile(optimizer, loss, **compile_arguments)
    return model


def cnn(**compile_arguments: Any) -> Any:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **compile_arguments)
    return model


def masked(loss: Any, return_sequences: bool = True) -> Any:
    inputs = keras.Input((7,), dtype="int32")
    hidden = keras.layers.Embedding(9, 5, mask_zero=True)(inputs)
    hidden = keras.layers.GRU(6, return_sequences=return_sequences)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(hidden))
    model.compile("adam", loss, metrics=["accuracy"], weighted_metrics=["sparse_categorical_crossentropy"])
    return model


def regularized() -> Any:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(0.1), bias_regularizer="l1")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.compile("sgd", "mse")
    return model


def activity_regularized() -> Any:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activity_regularizer=keras.regularizers.L2(0.05))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.compile("sgd", "mse")
    return model


class AddsLoss(keras.layers.Layer):
    def __init__(self, reduce: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.reduce = reduce

    def call(self, x: Any) -> Any:
        self.add_loss(self.reduce(keras.ops.square(x)) * 0.1)
        return x


def adding_loss(reduce: Any) -> Any:
    inputs = keras.Input((6,))
    hidden = AddsLoss(reduce)(keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.compile("sgd", "mse")
    return model


def two_outputs() -> Any:
    a, b = keras.Input((6,), name="a"), keras.Input((8, 8, 3), name="b")
    hidden = keras.layers.Concatenate()([keras.layers.Dense(4)(a), keras.layers.GlobalAveragePooling2D()(b)])
    outputs = {
        "value": keras.layers.Dense(2, name="value")(hidden),
        "label": keras.layers.Dense(3, activation="softmax", name="label")(hidden),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        "rmsprop",
        {"value": keras.losses.Huber(reduction="sum"), "label": "sparse_categorical_crossentropy"},
        loss_weights={"value": 0.3, "label": 2.0},
        metrics={"label": ["accuracy"], "value": ["mae"]},
    )
    return model


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.out = keras.layers.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.hidden(x)) * (1.0 if training else 0.5)


class OwnLoss(Subclassed):
    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ):
        return keras.ops.mean(keras.ops.abs(y - y_pred)) + 0.01 * keras.ops.mean(keras.ops.square(y_pred))


class OwnMetrics(Subclassed):
    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "constant": keras.ops.ones(())}


class UnusedWeight(Subclassed):
    def __init__(self) -> None:
        super().__init__()
        self.unused = self.add_weight(shape=(3,), name="unused")


def subclassed(cls: type = Subclassed) -> Any:
    model = cls()
    model.compile("adam", "mse", metrics=["mae"])
    return model


def frozen() -> Any:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    return model


def ignore_class() -> Any:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(28), keras.layers.Reshape((7, 4))])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1))
    return model


def scalar_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


def scalar_sum_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.sum(keras.ops.square(y_true - y_pred)) * 0.05


def scheduled() -> Any:
    schedule = keras.optimizers.schedules.CosineDecay(0.05, decay_steps=6)
    return mlp(optimizer=keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))


def reduced(reduction: str, cls: Any = keras.losses.MeanSquaredError) -> Any:
    return mlp(cls(reduction=reduction))


SAMPLE = {"sample_weight": WEIGHTS}
TEMPORAL = {"sample_weight": RNG.uniform(0.1, 2.0, size=(N, 7)).astype("float32")}
SCCE = keras.losses.SparseCategoricalCrossentropy

CASES = {
    "mse": Case(mlp, X, Y),
    "cnn": Case(cnn, IMAGES, CLASSES),
    "jit": Case(lambda: cnn(jit_compile=True), IMAGES, CLASSES),
    "no jit": Case(lambda: cnn(jit_compile=False), IMAGES, CLASSES),
    "eager": Case(lambda: mlp(run_eagerly=True), X, Y),
    "sample weight": Case(lambda: mlp(weighted_metrics=["mae"]), X, Y, SAMPLE),
    "class weight": Case(cnn, IMAGES, CLASSES, {"class_weight": {0: 1.0, 1: 3.0, 2: 0.2}}),
    "sum": Case(lambda: reduced("sum"), X, Y),
    "sum weighted": Case(lambda: reduced("sum"), X, Y, SAMPLE),
    "mean": Case(lambda: reduced("mean"), X, Y),
    "mean_with_sample_weight": Case(lambda: reduced("mean_with_sample_weight"), X, Y, SAMPLE),
    "mean_with_sample_weight, none given": Case(lambda: reduced("mean_with_sample_weight"), X, Y),
    "mask": Case(lambda: masked("sparse_categorical_crossentropy"), TOKENS, TAGS),
    "mask, sample weight": Case(lambda: masked("sparse_categorical_crossentropy"), TOKENS, TAGS, TEMPORAL),
    "mask, mean_with_sample_weight": Case(
        lambda: masked(SCCE(reduction="mean_with_sample_weight")), TOKENS, TAGS, TEMPORAL
    ),
    "mask, sum": Case(lambda: masked(SCCE(reduction="sum")), TOKENS, TAGS),
    "mask, last state": Case(lambda: masked("sparse_categorical_crossentropy", False), TOKENS, TAGS[:, 0]),
    "ignore_class": Case(ignore_class, X, TAGS),
    "weight regularizers": Case(regularized, X, Y),
    "activity regularizer": Case(activity_regularized, X, Y, split={"call_losses": "detect"}),
    "add_loss mean": Case(lambda: adding_loss(keras.ops.mean), X, Y),
    "add_loss sum": Case(lambda: adding_loss(keras.ops.sum), X, Y, split={"call_losses": "sum"}),
    "two outputs": Case(two_outputs, {"a": X, "b": IMAGES}, {"value": Y, "label": CLASSES}),
    "subclassed": Case(subclassed, X, Y),
    "own compute_loss": Case(lambda: subclassed(OwnLoss), X, Y),
    "own compute_metrics": Case(lambda: subclassed(OwnMetrics), X, Y),
    "unused weight": Case(lambda: subclassed(UnusedWeight), X, Y),
    "frozen layer": Case(frozen, X, Y),
    "scalar loss": Case(lambda: mlp(scalar_loss), X, Y),
    "scalar sum loss": Case(lambda: mlp(scalar_sum_loss), X, Y, split={"scalar_losses": "sum"}),
    "steps_per_execution": Case(lambda: mlp(steps_per_execution=2), X, Y),
    "loss scaling": Case(lambda: mlp(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))), X, Y),
    "clipnorm": Case(lambda: mlp(optimizer=keras.optimizers.Adam(0.01, clipnorm=0.01)), X, Y),
    "global_clipnorm": Case(lambda: mlp(optimizer=keras.optimizers.SGD(0.1, global_clipnorm=0.05)), X, Y),
    "clipvalue": Case(lambda: mlp(optimizer=keras.optimizers.SGD(0.1, clipvalue=0.01)), X, Y),
    "ema": Case(lambda: mlp(optimizer=keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2)), X, Y),
    "schedule": Case(scheduled, X, Y),
    "user's own accumulation": Case(
        lambda: mlp(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)), X, Y
    ),
    "validation": Case(cnn, IMAGES, CLASSES, {"validation_split": 0.2}),
    "auc": Case(
        lambda: mlp("binary_crossentropy", outputs=1, metrics=[keras.metrics.AUC(from_logits=True, name="auc")]),
        X,
        CLASSES % 2,
    ),
}
if keras.backend.backend() == "tensorflow":  # elsewhere plain Keras refuses a loss that is not a scalar
    CASES["none"] = Case(lambda: mlp(keras.losses.MeanSquaredError(reduction=None)), X, Y)
if keras.backend.backend() == "torch":  # torch takes no steps_per_execution
    del CASES["steps_per_execution"]


def specs(case: Case, batch_size: int) -> tuple[Any, Any, Any]:
    def spec(array: Any) -> TensorSpec:
        return TensorSpec((batch_size, *array.shape[1:]), str(array.dtype))

    weight = case.fit.get("sample_weight")
    if "class_weight" in case.fit:
        weight = WEIGHTS
    return tuple(keras_seam.map_leaves(spec, part) for part in (case.x, case.y, weight))


def train(case: Case, split: Split | None, **fit_arguments: Any) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    keras.utils.set_random_seed(3)
    model = case.build()
    detach = None
    if split is not None:
        keras_seam.symbolic_build(model, specs(case, 16))
        detach = backends.current().attach(model, split)
    history = model.fit(
        case.x, case.y, batch_size=16, epochs=2, verbose=0, shuffle=False, **{**case.fit, **fit_arguments}
    )
    if detach is not None:
        detach()
    return model.get_weights() + [np.asarray(v) for v in model.optimizer.variables], history.history


@pytest.mark.parametrize("micro_batch_size", [5])
@pytest.mark.parametrize("name", CASES)
def test_micro_batched_training_equals_model_fit(name: str, micro_batch_size: int) -> None:
    case = CASES[name]
    arguments = dict(case.split)
    if arguments.get("call_losses") == "detect":  # Keras 3.13 began to divide activity regularizers by the batch size
        arguments["call_losses"] = "mean" if activity_is_mean() else "sum"
    expected, expected_logs = train(case, None)
    actual, actual_logs = train(case, Split(micro_batch_size, **arguments))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, float(np.max(np.abs(b), initial=0))))
    assert actual_logs.keys() == expected_logs.keys()
    if keras.backend.backend() == "torch" and "sample_weight" in case.fit and name.startswith("mask"):
        # There plain Keras multiplies the mask into the user's sample weights, and weights its metrics by the product.
        expected_logs.pop("weighted_sparse_categorical_crossentropy", None)
        expected_logs.pop("sparse_categorical_crossentropy", None)
    for key, values in expected_logs.items():
        np.testing.assert_allclose(actual_logs[key], values, rtol=2e-5, atol=1e-6, err_msg=key)


def activity_is_mean() -> bool:
    layer = keras.layers.Dense(2, activity_regularizer="l2", kernel_initializer="ones")
    layer(np.ones((1, 1), "float32"))
    single = float(layer.losses[0])
    layer(np.ones((2, 1), "float32"))
    return float(layer.losses[0]) < 1.5 * single
