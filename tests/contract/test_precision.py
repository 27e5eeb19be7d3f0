"""Mixed precision on built models: which layers, training beside float32's, loss scaling, and nothing left afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from memfit import backends
from memfit.backends import keras_seam
from memfit.executing.attached import attached
from memfit.levers import precision, remat
from memfit.levers.precision_layers import lowered_layers
from memfit.levers.pulled import pulled
from memfit.levers.verification import verified
from memfit.profiling import cache
from memfit.records import Levers, Split, TensorSpec

N, BATCH = 24, 8
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 6)).astype("float32")
Y = RNG.normal(size=(N, 2)).astype("float32")
IMAGES = RNG.normal(size=(N, 8, 8, 3)).astype("float32")
TOKENS = RNG.integers(0, 9, size=(N, 7)).astype("int32")
SEQUENCES = RNG.normal(size=(N, 5, 8)).astype("float32")
FRAMES = RNG.normal(size=(N, 3, 8, 8, 3)).astype("float32")

BFLOAT16, FLOAT16 = precision.SETTINGS


def mlp() -> Any:
    hidden = [layers.Dense(12, activation="gelu", name=f"hidden{i}") for i in range(3)]
    return keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(2, name="out")])


def cnn() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(0.5, name="rescaling")(inputs)
    for i in range(2):
        x = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = layers.Activation("relu", name=f"relu{i}")(layers.BatchNormalization(name=f"norm{i}")(x))
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
    x = layers.Dense(2, name="out")(layers.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(inputs, layers.Activation("softmax", name="softmax")(x))


def recurrent() -> Any:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 5, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True))(x)
    return keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(x)))


def transformer() -> Any:
    inputs = keras.Input((5, 8))
    x = layers.Dense(8)(inputs)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 4)(query=y, value=y, use_causal_mask=True)
        x = layers.Add()([x, layers.Dense(8)(layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x)))])
    return keras.Model(inputs, layers.Dense(2)(keras.ops.mean(x, axis=1)))


def nested() -> Any:
    inner_inputs = keras.Input((6,))
    inner = keras.Model(inner_inputs, layers.Dense(6, activation="tanh")(layers.BatchNormalization()(inner_inputs)))
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2)(inner(inner(layers.Dense(6)(inputs)))))


def frames() -> Any:
    encoder = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(4, 3), layers.Flatten()])
    inputs = keras.Input((3, 8, 8, 3))
    return keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(layers.TimeDistributed(encoder)(inputs))))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = layers.Dense(8, activation="relu"), layers.Dense(8), layers.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.first(x)
        return self.out(x + self.second(x))


class Block(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(6, activation="tanh")

    def build(self, shape: Any) -> None:
        self.hidden.build(shape)

    def call(self, x: Any) -> Any:
        return x + self.hidden(x)


def with_own_layer() -> Any:
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(Block()(layers.Dense(6)(inputs)))))


CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "mlp": (mlp, X),
    "cnn": (cnn, IMAGES),
    "recurrent": (recurrent, TOKENS),
    "transformer": (transformer, SEQUENCES),
    "nested": (nested, X),
    "frames": (frames, FRAMES),
    "subclassed": (Subclassed, X),
    "own layer": (with_own_layer, X),
}


def compiled(name: str, optimizer: Any = "adam", **arguments: Any) -> tuple[Any, Any, Any]:
    build, x = CASES[name]
    keras.utils.set_random_seed(3)
    model = build()
    model.compile(optimizer, "mse", metrics=["mae"], **arguments)
    spec = TensorSpec((BATCH, *x.shape[1:]), str(x.dtype)), TensorSpec((BATCH, 2), "float32"), None
    keras_seam.symbolic_build(model, spec)
    return model, x, spec


def losses(name: str, levers: Levers, split: Split | None = None, **fit: Any) -> list[float]:
    model, x, _ = compiled(name)
    backend = backends.current()
    with pulled(model, levers, backend), attached(model, split, backend):
        return model.fit(x, Y, batch_size=BATCH, epochs=3, verbose=0, shuffle=False, **fit).history["loss"]


@pytest.mark.parametrize("name", CASES)
def test_training_in_bfloat16_is_near_float32(name: str) -> None:
    model, _, spec = compiled(name)
    assert precision.blocked_reason(model, spec, backends.current(), precision=BFLOAT16) is None
    expected, actual = losses(name, Levers()), losses(name, Levers(precision=BFLOAT16))
    assert actual != expected, "nothing was computed in half precision"
    np.testing.assert_allclose(actual, expected, rtol=0.04)


@pytest.mark.parametrize("setting", precision.SETTINGS)
def test_with_recomputation_and_micro_batches(setting: str) -> None:
    model, _, spec = compiled("transformer")
    levers = Levers(remat=remat.everything(remat.chain(model, spec), 2), precision=setting)
    expected = losses("transformer", Levers())
    tolerance = 0.04 if setting == BFLOAT16 else 0.15  # the first steps may overflow the scale that they start with
    for split in (None, Split(3)):
        np.testing.assert_allclose(losses("transformer", levers, split), expected, rtol=tolerance)


def names(model: Any) -> set[str]:
    return {layer.name for layer in lowered_layers(model)}


def test_outputs_activations_without_bound_and_raw_data_stay_in_float32() -> None:
    assert names(cnn()) == {"conv0", "norm0", "relu0", "pool0", "conv1", "norm1", "relu1", "pool1", "mean"}


def test_inner_layers_go_with_theirs_and_tables_stay() -> None:
    model = recurrent()
    kinds = {type(layer).__name__ for layer in lowered_layers(model)}
    assert kinds == {"Bidirectional", "GRU", "GRUCell", "LSTM", "LSTMCell"}


def test_a_layer_of_the_users_own_is_kept_with_all_inside() -> None:
    lowered = lowered_layers(with_own_layer())
    assert [(type(layer).__name__, layer.units) for layer in lowered] == [("Dense", 6), ("Dense", 4)]


def test_what_a_fragile_operation_reads_stays() -> None:
    inputs = keras.Input((6,))
    before = layers.Dense(4, name="before")(layers.Dense(4, name="first")(inputs))
    after = layers.Dense(4, name="after")(keras.ops.exp(before * 2.0))
    assert names(keras.Model(inputs, layers.Dense(2)(after))) == {"first", "after"}


def test_layers_with_a_precision_of_their_own_or_an_activity_regularizer_stay() -> None:
    stack = [
        layers.Dense(4, name="mine", dtype="mixed_float16"),
        layers.Dense(4, name="regularized", activity_regularizer="l2"),
        layers.Dense(4, name="own", activation=lambda x: x),
        layers.Dense(4, name="plain"),
    ]
    assert names(keras.Sequential([keras.Input((6,)), *stack, layers.Dense(2)])) == {"plain"}


class MixesOnItsOwn(Subclassed):
    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(keras.ops.cast(self.first(x), "float32")), self.second(self.first(x))


def test_a_model_of_the_users_own_that_returns_half_precision_is_refused() -> None:
    model = MixesOnItsOwn()
    model.compile("sgd", ["mse", "mse"])
    spec = TensorSpec((4, 6), "float32"), (TensorSpec((4, 2), "float32"), TensorSpec((4, 8), "float32")), None
    keras_seam.symbolic_build(model, spec)
    policies = [layer.dtype_policy for layer in model.layers]
    reason = precision.blocked_reason(model, spec, backends.current(), precision=BFLOAT16)
    assert reason is not None
    assert "MixesOnItsOwn.call" in reason
    assert all(a is b for a, b in zip([layer.dtype_policy for layer in model.layers], policies, strict=True))


def test_the_precision_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, (model, _, spec) = backends.current(), compiled("mlp")
    said = backend.half_precision()
    assert said.reason
    assert precision.setting(backend) == (said.dtype and f"mixed_{said.dtype}")
    none = type(said)(None, "it is an abacus")
    monkeypatch.setattr(backend, "half_precision", lambda: none)
    assert "it is an abacus" in (precision.blocked_reason(model, spec, backend) or "")


# Loss scaling


def scale(model: Any) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.dynamic_scale.value))


@pytest.mark.parametrize("split", [None, Split(3)])
def test_float16_scales_the_loss_and_skips_what_overflows(split: Split | None) -> None:
    model, x, _ = compiled("mlp")
    backend = backends.current()
    slots = len(model.optimizer.variables)

    def step() -> None:
        model.fit(x[:BATCH], Y[:BATCH], batch_size=BATCH, verbose=0)

    with precision.attached(model, FLOAT16, backend), attached(model, split, backend):
        assert all(any(a is b for b in model.optimizer.variables) for a in keras_seam.own_optimizer(model).variables)
        model.optimizer.dynamic_growth_steps = 2
        before = model.get_weights()
        step()
        assert scale(model) == 2.0**15
        step()
        assert scale(model) == 2.0**16
        trained = model.get_weights()
        assert all(np.isfinite(a).all() and not np.array_equal(a, b) for a, b in zip(trained, before, strict=True))
        model.optimizer.dynamic_scale.assign(2.0**100)
        step()
        assert scale(model) == 2.0**99
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), trained, strict=True))
    assert len(model.optimizer.variables) == slots
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations.value)) == 2


@pytest.mark.parametrize("own", ["scaling", "factor"])
def test_scaling_of_the_users_own(own: str) -> None:
    inner = keras.optimizers.SGD(0.01, loss_scale_factor=8.0)
    optimizer = keras.optimizers.LossScaleOptimizer(inner) if own == "scaling" else inner
    model, _, _ = compiled("mlp", optimizer)
    with precision.attached(model, FLOAT16, backends.current()):
        assert (model.optimizer is optimizer) == (own == "scaling")
    assert model.optimizer is optimizer
    assert inner.loss_scale_factor == (None if own == "scaling" else 8.0)


# Nothing is left


def snapshot(model: Any) -> list[Any]:
    functions = [model.train_function, model.test_function, model.predict_function]
    policies = [layer.dtype_policy for layer in (model, *keras_seam.flat_layers(model))]
    variables = [*model.variables, *model.optimizer.variables]
    names = vars(model).keys() - {"_memfit_prepared_step", "_eval_epoch_iterator"}  # which Keras leaves itself
    return [model.optimizer, names, *functions, *policies, *variables]


def unchanged(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        a is b or (isinstance(a, set) and a == b) for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("setting", precision.SETTINGS)
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(setting: str, fails: bool) -> None:
    model, x, _ = compiled("cnn")
    model.fit(x, Y, batch_size=BATCH, verbose=0, validation_data=(x, Y))
    model.predict(x, batch_size=BATCH, verbose=0)
    backend, before = backends.current(), snapshot(model)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=fail)] if fails else []
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():  # noqa: SIM117
        with precision.attached(model, setting, backend), attached(model, None, backend):
            model.fit(x, Y, batch_size=BATCH, verbose=0, validation_data=(x, Y), callbacks=callbacks)
    assert unchanged(before, snapshot(model))
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    model.fit(x, Y, batch_size=BATCH, verbose=0)


def test_inference_inside_is_in_half_precision_and_afterwards_not() -> None:
    model, x, _ = compiled("cnn")
    x = x[:BATCH]
    expected, logs = model.predict(x, verbose=0), model.evaluate(x, Y[:BATCH], verbose=0)
    with precision.attached(model, BFLOAT16, backends.current()):
        inside = model.predict(x, verbose=0)
        assert model.evaluate(x, Y[:BATCH], verbose=0) != logs
    assert inside.dtype == "float32"
    assert not np.array_equal(inside, expected)
    model.test_function = model.predict_function = None  # traced anew, as after a compile
    assert np.array_equal(model.predict(x, verbose=0), expected)
    assert model.evaluate(x, Y[:BATCH], verbose=0) == logs


def test_an_unknown_precision_changes_nothing() -> None:
    model, _, _ = compiled("mlp")
    before = snapshot(model)
    with (
        pytest.raises(ValueError, match="Received: precision='half'"),
        precision.attached(model, "half", backends.current()),
    ):
        pass
    assert unchanged(before, snapshot(model))


def test_the_users_train_function_is_used_again() -> None:
    model, x, _ = compiled("mlp", keras.optimizers.SGD(0.0))
    expected = model.fit(x, Y, batch_size=BATCH, verbose=0, shuffle=False).history["loss"]
    with precision.attached(model, BFLOAT16, backends.current()):
        assert model.fit(x, Y, batch_size=BATCH, verbose=0, shuffle=False).history["loss"] != expected
    assert model.fit(x, Y, batch_size=BATCH, verbose=0, shuffle=False).history["loss"] == expected


# What the planner sees


def test_the_analysis_sees_fewer_bytes() -> None:
    hidden = [layers.Dense(128, activation="relu") for _ in range(12)]
    model = keras.Sequential([keras.Input((128,)), *hidden, layers.Dense(1)])
    model.compile("sgd", "mse")
    spec = TensorSpec((8192, 128), "float32"), TensorSpec((8192, 1), "float32"), None
    keras_seam.symbolic_build(model, spec)
    backend = backends.current()
    plain = backend.step_bytes(model, spec, None)
    with precision.attached(model, BFLOAT16, backend):
        less = backend.step_bytes(model, spec, None)
    assert plain is not None
    assert less is not None
    assert less.bytes < {"torch": 0.8, "jax": 0.95, "tensorflow": 1.0}[backend.name] * plain.bytes


def test_kept_analyses_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "/nowhere")
    model, _, spec = compiled("subclassed")
    backend = backends.current()
    keys = [cache.key(model, spec, None, "train", backend)]
    for setting in precision.SETTINGS:
        with precision.attached(model, setting, backend):
            keys.append(cache.key(model, spec, None, "train", backend))
    assert None not in keys
    assert len(set(keys)) == 3


def test_the_other_levers_are_proved_without_it() -> None:
    model, x, spec = compiled("transformer")
    batch, backend = (x[:5], Y[:5], None), backends.current()
    levers = Levers(remat=remat.everything(remat.chain(model, spec), 2), precision=FLOAT16)
    proof = verified(model, batch, levers, Split(2), backend=backend)
    assert proof.agrees
    assert proof.difference is not None
    assert proof.difference < 1e-4
    assert proof.precision_difference is not None
    assert 1e-5 < proof.precision_difference < 0.1
    assert "mixed_float16: gradients differ from float32's by" in proof.reason


def test_gradients_that_are_others_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = compiled("mlp")
    backend = backends.current()
    plain = backend.gradients

    def wrong(model: Any, batch: Any, split: Any) -> Any:
        loss, found = plain(model, batch, split)
        return loss, [-one if keras_seam.precision_of(model) else one for one in found]

    monkeypatch.setattr(backend, "gradients", wrong)
    proof = verified(model, (x[:5], Y[:5], None), Levers(precision=BFLOAT16), None, backend=backend)
    assert not proof.agrees
    assert "dropped" in proof.reason
