"""Models that treat samples apart by what their layers are: told without running them, and never of one that mixes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from memfit import backends
from memfit.backends import keras_seam
from memfit.levers import apart, micro_batch
from memfit.records import TensorSpec

L = keras.layers
SAMPLES, STEPS, WIDTH = 6, 6, 8


def built(body: Callable[[Any], Any], loss: Any = "mse", **compiled: Any) -> Any:
    inputs = keras.Input((STEPS, WIDTH))
    model = keras.Model(inputs, L.Dense(1)(L.GlobalAveragePooling1D()(body(inputs))))
    return ready(model, loss, **compiled)


def ready(model: Any, loss: Any = "mse", y_shape: tuple[int, ...] = (1,), **compiled: Any) -> Any:
    model.compile("sgd", loss, **compiled)
    x = TensorSpec((SAMPLES, *model.inputs[0].shape[1:]), "float32")
    keras_seam.symbolic_build(model, (x, TensorSpec((SAMPLES, *y_shape), "float32"), None))
    return model


def attended(x: Any) -> Any:
    return x + L.MultiHeadAttention(2, 4, dropout=0.1)(x, x)


APART: dict[str, Callable[[Any], Any]] = {
    "dense": L.Dense(8, activation="softmax", kernel_regularizer="l2"),
    "conv": lambda x: L.MaxPooling1D(2)(L.LeakyReLU()(L.Conv1D(8, 3, padding="same")(x))),
    "recurrent": lambda x: L.Bidirectional(L.GRU(4, return_sequences=True))(L.LSTM(8, return_sequences=True)(x)),
    "attention": attended,
    "distributed": lambda x: L.TimeDistributed(L.Dense(3))(L.LayerNormalization()(x)),
    "merged": lambda x: L.Concatenate()([L.Add()([x, x]), x * x, L.Softmax()(x)]),
    "nested": lambda x: keras.Sequential([keras.Input((STEPS, WIDTH)), L.Dropout(0.2), L.Dense(4)])(x),
    "images": lambda x: L.RepeatVector(2)(L.Flatten()(L.Permute((2, 1))(x))),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_known_to_be_apart_is_found_so_by_the_test_on_the_model(name: str) -> None:
    model = built(APART[name])
    assert apart.is_apart(model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, STEPS, WIDTH)).astype("float32")
    found = micro_batch.separability(model, (x, np.ones((SAMPLES, 1), "float32"), None), backends.current())
    assert found.split is not None
    assert (found.split.call_losses, found.split.scalar_losses) == ("mean", "mean")


class Own(keras.layers.Dense):
    """May do anything."""


def replaced_call(x: Any) -> Any:
    layer = L.Dense(4)
    call = layer.call
    layer.call = lambda inputs, training=None: call(inputs)
    return layer(x)


UNKNOWN: dict[str, Callable[[Any], Any]] = {
    "normalized": L.BatchNormalization(),
    "along the samples": L.Softmax(axis=0),
    "perhaps along the samples": L.Softmax(axis=-2),
    "attention over samples": lambda x: L.MultiHeadAttention(2, 4, attention_axes=(0,))(x, x),
    "the user's own": Own(4),
    "an own activation": L.Dense(4, activation=lambda x: x - keras.ops.mean(x, axis=0)),
    "in a wrapper": L.TimeDistributed(Own(4)),
    "in a model": lambda x: keras.Sequential([keras.Input((STEPS, WIDTH)), L.BatchNormalization()])(x),
    "an operation": lambda x: x - keras.ops.mean(x, axis=0, keepdims=True),
    "of another rank": lambda x: x + x[:, 0, :],
    "activities": L.Dense(4, activity_regularizer="l2"),
    "replaced": replaced_call,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_mix_samples_is_not_known(name: str) -> None:
    assert not apart.is_apart(built(UNKNOWN[name]))


class Model(keras.Model):
    """Its call is the user's own."""

    def call(self, x: Any) -> Any:
        return x


def own_loss(y: Any, prediction: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y - prediction), axis=-1)


def test_nor_is_it_where_the_loss_or_the_model_is_the_users_own_or_samples_are_numbers() -> None:
    plain = L.Dense(4)
    assert apart.is_apart(built(plain))
    assert not apart.is_apart(built(plain, own_loss))
    assert not apart.is_apart(built(plain, keras.losses.Dice()))
    assert not apart.is_apart(built(plain, keras.losses.CategoricalCrossentropy(axis=0)))
    numbers = keras.Input(())
    scalars = keras.Model(numbers, L.Dense(1)(L.Embedding(4, 2)(numbers)))
    assert not apart.is_apart(ready(scalars))
    inputs = keras.Input((WIDTH,))
    assert not apart.is_apart(ready(Model(inputs, L.Dense(1)(inputs))))
    recurrent = keras.Sequential(
        [keras.Input((STEPS, WIDTH), batch_size=SAMPLES), L.LSTM(3, stateful=True), L.Dense(1)]
    )
    assert not apart.is_apart(ready(recurrent))


_ASKED = """
import sys, keras, memfit
from memfit.backends import keras_optimizer
from memfit.levers import apart
x = keras.Input((8, 4))
model = keras.Model(x, keras.layers.Dense(1)(keras.layers.MultiHeadAttention(1, 2)(x, x)))
model.compile(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)), "mse")
memfit.profile(model, batch_size=4)
assert apart.is_apart(model)
assert keras_optimizer.slots_to_come(model.optimizer, 2) == 2
assert "tensorflow" not in sys.modules
"""


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="where Keras would import TensorFlow to ask")
def test_asking_imports_no_other_framework() -> None:
    run = subprocess.run([sys.executable, "-c", _ASKED], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
