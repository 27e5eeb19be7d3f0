"""8-bit Adam: an ordinary optimizer, close to Adam; and the lever that puts it in the place of the user's and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, optimizers

from memfit import backends
from memfit.backends import keras_optimizer, keras_seam
from memfit.executing import attached
from memfit.levers import block_code, optimizer_state
from memfit.levers.eight_bit_adam import EightBitAdam, EightBitAdamW
from memfit.levers.pulled import pulled
from memfit.profiling.layers import variable_bytes
from memfit.records import Levers, Split, TensorSpec

N, BATCH = 64, 16
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 64)).astype("float32")
Y = np.tanh(X[:, :2] - X[:, 2:4])
WORDS = RNG.integers(0, 40, size=(N, 6)).astype("int32")
LEVERS = Levers(optimizer_state=optimizer_state.SETTING)


def mlp(optimizer: Any, **compile_arguments: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(96, activation="relu"), layers.Dense(2)])
    model.compile(optimizer, "mse", **compile_arguments)
    model.optimizer.build(model.trainable_variables)
    return model


def words(optimizer: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(200, 32), layers.Flatten()])
    model.add(layers.Dense(2))
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def fitted(model: Any, x: Any = X, epochs: int = 3, **arguments: Any) -> list[float]:
    return model.fit(x, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **arguments).history["loss"]


def values(variables: list[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def held(variables: list[Any]) -> int:
    """Entries that variables really hold."""
    return sum(math.prod(array.shape) for array in values(variables))


def slots(adam: Any) -> list[Any]:
    return [variable for pair in keras_optimizer.adam_moments(adam) for variable in pair]


# The optimizer


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 0.01),
        ({"weight_decay": 0.01}, 0.01),
        ({"clipnorm": 0.1}, 0.01),
        ({"clipvalue": 0.01}, 0.01),
        ({"global_clipnorm": 0.1}, 0.01),
        ({"use_ema": True, "ema_overwrite_frequency": 2}, 0.01),
        ({"loss_scale_factor": 8.0}, 0.01),
        ({"gradient_accumulation_steps": 2}, 0.01),
    ],
    ids=lambda option: next(iter(option), "plain") if isinstance(option, dict) else "",
)
def test_it_trains_as_adam_does_with_every_option(options: dict[str, Any], tolerance: float) -> None:
    expected = fitted(mlp(optimizers.Adam(1e-3, **options)))
    model = mlp(EightBitAdam(1e-3, **options))
    assert fitted(model) == pytest.approx(expected, rel=tolerance)
    assert [variable.dtype for variable in model.optimizer.moments[0].variables] == ["uint8", "float32"] * 2


def test_with_a_schedule_and_under_a_loss_scale_optimizer() -> None:
    schedule = optimizers.schedules.CosineDecay(1e-2, 12)
    assert fitted(mlp(EightBitAdamW(schedule))) == pytest.approx(fitted(mlp(optimizers.AdamW(schedule))), rel=0.01)
    scaled = optimizers.LossScaleOptimizer
    assert fitted(mlp(scaled(EightBitAdam()))) == pytest.approx(fitted(mlp(scaled(optimizers.Adam()))), rel=0.01)


@pytest.mark.parametrize("jit", [False, True])
def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, jit: bool) -> None:
    if jit and keras.backend.backend() == "torch":
        pytest.skip("torch.compile does not see the update")
    whole = mlp(EightBitAdam(), jit_compile=jit)
    fitted(whole, epochs=1)
    monkeypatch.setattr(block_code, "CHUNK", 1000)
    parts = mlp(EightBitAdam(), jit_compile=jit)
    assert parts.optimizer.moments[0].strides((64, 96)) == [8, 768, 3, 768, 3]
    fitted(parts, epochs=1)
    for one, other in zip(values(whole.weights), values(parts.weights), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("chunk", [2**20, 1000])
def test_embeddings_with_sparse_gradients_train_as_adams(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(block_code, "CHUNK", chunk)
    expected, model = words(optimizers.Adam(0.01)), words(EightBitAdam(0.01))
    assert fitted(model, WORDS) == pytest.approx(fitted(expected, WORDS), rel=0.01)
    # Rows that no batch used are where they were.
    np.testing.assert_array_equal(values(model.weights)[0][40:], values(words("sgd").weights)[0][40:])


def test_weights_excluded_from_decay_are_not_decayed() -> None:
    adam, lever = optimizers.AdamW(1e-3, weight_decay=5.0), optimizers.AdamW(1e-3, weight_decay=5.0)
    for optimizer in (adam, lever):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
    expected, model = mlp(adam), mlp(lever)
    fitted(expected)
    with pulled(model, LEVERS, backends.current(), trains=True):
        fitted(model)
    # Decay would move them by 0.005 in the mean.
    assert np.mean(np.abs(values(model.weights)[0] - values(expected.weights)[0])) < 5e-4


def test_it_is_saved_in_a_keras_file_and_goes_on(tmp_path: Path) -> None:
    model = mlp(EightBitAdamW(2e-3, beta_1=0.8))
    fitted(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, EightBitAdamW)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for one, other in zip(values(model.optimizer.variables), values(again.optimizer.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    assert fitted(again) == pytest.approx(fitted(model), rel=1e-5)


def test_large_tensors_take_at_most_2_1_bytes_a_parameter() -> None:
    model = mlp(EightBitAdam())
    kernel, bias, *_ = model.optimizer.moments
    assert variable_bytes(kernel.variables) <= 2.1 * 64 * 96
    assert variable_bytes(bias.variables) == 8 * 96
    assert block_code.state_bytes((64, 96)) == variable_bytes(kernel.variables)


# The lever


def test_forth_and_back_the_optimizer_is_the_very_object_and_goes_on() -> None:
    expected, model = mlp(optimizers.Adam(5e-3)), mlp(optimizers.Adam(5e-3))
    adam = model.optimizer
    for one in (expected, model):
        fitted(one, epochs=2)
    before = held(slots(adam))
    saved = optimizer_state.saved_bytes(model)
    plain = variable_bytes(adam.variables)
    with pulled(model, LEVERS, backends.current(), trains=True):
        assert isinstance(model.optimizer, EightBitAdam)
        assert held(slots(adam)) == 0
        assert variable_bytes(model.optimizer.variables) == plain - saved
        assert fitted(model, epochs=2) == pytest.approx(fitted(expected, epochs=2), rel=0.02)
        stand_in = model.optimizer
    assert model.optimizer is adam
    assert held(slots(adam)) == before
    assert held([v for moments in stand_in.moments for v in moments.variables]) == 0
    assert int(adam.iterations) == 4 * N // BATCH
    first, second = keras_optimizer.adam_moments(adam)[0]
    theirs, squares = keras_optimizer.adam_moments(expected.optimizer)[0]
    assert np.corrcoef(values([first])[0].ravel(), values([theirs])[0].ravel())[0, 1] > 0.99
    assert np.corrcoef(values([second])[0].ravel(), values([squares])[0].ravel())[0, 1] > 0.99
    assert fitted(model) == pytest.approx(fitted(expected), rel=0.02)


def test_an_analysis_leaves_the_moments_exactly_as_they_were() -> None:
    model = mlp(optimizers.Adam())
    fitted(model)
    adam, before = model.optimizer, values(model.optimizer.variables)
    spec = (TensorSpec((BATCH, 64), "float32"), TensorSpec((BATCH, 2), "float32"), None)
    with pulled(model, LEVERS, backends.current()):
        assert isinstance(model.optimizer, EightBitAdam)
        for split in (None, Split(4)):
            assert backends.current().step_bytes(model, spec, split) is not None
    assert model.optimizer is adam
    for one, other in zip(before, values(adam.variables), strict=True):
        np.testing.assert_array_equal(one, other)


def test_micro_batches_after_an_analysis_train_as_the_whole_batch_does() -> None:
    backend = backends.current()
    whole, model = mlp(optimizers.Adam()), mlp(optimizers.Adam())
    fitted(model, epochs=1)
    fitted(whole, epochs=1)
    keras_seam.symbolic_build(model, (X[:BATCH], Y[:BATCH], None))
    spec = (TensorSpec((BATCH, 64), "float32"), TensorSpec((BATCH, 2), "float32"), None)
    with pulled(model, LEVERS, backend):
        backend.step_bytes(model, spec, Split(4))
    with pulled(whole, LEVERS, backend, trains=True):
        expected = fitted(whole)
    with pulled(model, LEVERS, backend, trains=True), attached.attached(model, Split(4), backend, analysed=True):
        assert fitted(model) == pytest.approx(expected, rel=1e-3)
    for one, other in zip(values(model.weights), values(whole.weights), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_callbacks_set_the_learning_rate_of_both() -> None:
    model = mlp(optimizers.Adam(1e-3))
    rates: list[float] = []
    falling = keras.callbacks.LearningRateScheduler(lambda epoch: 10.0 ** -(epoch + 3))
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: rates.append(float(model.optimizer.learning_rate)))
    with pulled(model, LEVERS, backends.current(), trains=True):
        fitted(model, callbacks=[falling, seen])
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5])
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_in_training_gives_the_optimizer_back(error: type[BaseException]) -> None:
    model = mlp(optimizers.Adam())
    adam, entries = model.optimizer, held(slots(model.optimizer))

    def fail(batch: int, logs: Any = None) -> None:
        if batch == 2:
            raise error

    with pytest.raises(error), pulled(model, LEVERS, backends.current(), trains=True):
        fitted(model, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=fail)])
    assert model.optimizer is adam
    assert held(slots(adam)) == entries
    assert any(np.any(value) for value in values(slots(adam)))
    assert np.isfinite(fitted(model)).all()


def test_an_interrupt_on_the_way_in_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(optimizers.Adam())
    fitted(model, epochs=1)
    adam, before, calls = model.optimizer, values(model.optimizer.variables), []

    def interrupted(moments: Any) -> Any:
        calls.append(moments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return block_code.to_kept(moments)

    monkeypatch.setattr(optimizer_state, "to_kept", interrupted)
    with pytest.raises(KeyboardInterrupt), pulled(model, LEVERS, backends.current(), trains=True):
        pass
    assert model.optimizer is adam
    for one, other in zip(before, values(adam.variables), strict=True):
        np.testing.assert_allclose(one, other, atol=0.01 * np.abs(one).max())


def test_averages_accumulated_gradients_and_loss_scale_are_the_users_own() -> None:
    options = {"use_ema": True, "ema_momentum": 0.5, "gradient_accumulation_steps": 2}
    expected = mlp(optimizers.LossScaleOptimizer(optimizers.Adam(1e-3, **options)))
    model = mlp(optimizers.LossScaleOptimizer(optimizers.Adam(1e-3, **options)))
    outer, adam = model.optimizer, model.optimizer.inner_optimizer
    fitted(expected)
    with pulled(model, LEVERS, backends.current(), trains=True):
        assert model.optimizer is outer
        assert isinstance(outer.inner_optimizer, EightBitAdam)
        fitted(model)
    assert outer.inner_optimizer is adam
    assert int(adam._iterations) == int(expected.optimizer.inner_optimizer._iterations)
    for one, other in zip(values(model.weights), values(expected.weights), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


class Own(optimizers.Adam):
    """A user's Adam."""


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        ("sgd", "not Keras' Adam"),
        (lambda: Own(), "not Keras' Adam"),
        (lambda: optimizers.Adam(amsgrad=True), "amsgrad"),
        (lambda: EightBitAdam(), "already"),
    ],
)
def test_other_optimizers_are_refused_with_the_reason(optimizer: Any, reason: str) -> None:
    model = mlp(optimizer() if callable(optimizer) else optimizer)
    before = model.optimizer
    found = optimizer_state.options(model)
    assert found.setting is None
    assert reason in found.reason
    with pytest.raises(ValueError, match=reason), pulled(model, LEVERS, backends.current(), trains=True):
        pass
    assert model.optimizer is before


def test_a_model_of_small_tensors_has_nothing_to_gain() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    assert optimizer_state.options(model).setting is None
    assert optimizer_state.options(mlp("adam")).setting == optimizer_state.SETTING
