"""``memfit.shrink`` on real models: what is removed is what was meant, and the rest is what it was."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.errors import ArgumentError, MemfitError
from memfit.shrink import anatomy, masking, rebuilding, selection, teaching
from memfit.shrink.comparing import Comparison
from memfit.shrink.measuring import Measured

L = keras.layers
ops = keras.ops


def _compiled(model: Any) -> Any:
    model.compile("adam", "mse", metrics=["mae"])
    return model


def branches() -> Any:
    """Additions, concatenations, groups, a gate, Flatten."""
    image = keras.Input((8, 8, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(image)))
    x = L.Add()([x, L.Conv2D(8, 3, padding="same")(x)])
    x = L.Concatenate()([x, L.SeparableConv2D(8, 3, padding="same")(x)])
    x = L.Conv2D(16, 3, groups=2, padding="same")(x)
    x = L.MaxPooling2D()(L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x))
    gate = L.Dense(32, activation="sigmoid")(L.Dense(8, activation="relu")(L.GlobalAveragePooling2D()(x)))
    x = L.PReLU(shared_axes=[1, 2])(x * L.Reshape((1, 1, 32))(gate))
    return _compiled(keras.Model(image, L.Dense(5)(L.Dropout(0.5)(L.Flatten()(x)))))


def sequences() -> Any:
    """Embedding, attention with a residual, recurrent layers."""
    words = keras.Input((6,), dtype="int32")
    x = L.Dense(8)(L.Embedding(20, 8)(words))
    x = x + L.MultiHeadAttention(4, 4)(x, x)
    x = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
    x = L.SimpleRNN(4)(L.GRU(4, return_sequences=True)(x))
    return _compiled(keras.Model(words, L.Dense(3)(x)))


def siamese() -> Any:
    """One nested model, called twice."""
    tower = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(4)], name="tower")
    a, b = keras.Input((6,)), keras.Input((6,))
    return _compiled(keras.Model([a, b], L.Dense(1)(L.Concatenate()([tower(a), tower(b)]))))


def decoder() -> Any:
    """Features made into positions again, and operations instead of layers."""
    code = keras.Input((5,))
    x = L.Conv2DTranspose(6, 3, strides=2, padding="same")(L.Reshape((2, 2, 4))(L.Dense(16)(code)))
    return _compiled(keras.Model(code, L.Dense(2)(ops.mean(ops.relu(x), axis=(1, 2)))))


def some_input(model: Any, count: int = 4) -> Any:
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 20, (count, *one.shape[1:])).astype(one.dtype) for one in model.inputs]
    return x if len(x) > 1 else x[0]


def weights(model: Any) -> list[np.ndarray]:
    return [np.array(value) for value in model.get_weights()]


def silence(found: anatomy.Anatomy, kept: Any) -> None:
    """Sets the kernels of the channels that will go to zero: what they say reaches nothing."""
    for part in found.parts.values():
        for weight in getattr(part.layer, "weights", ()):
            cut = part.cuts.get(id(weight))
            if cut is None or not cut.scores or cut.groups > 1:
                continue
            value = selection.values(weight)
            for axis, atoms in cut.axes.items():
                gone = np.setdiff1d(np.arange(len(atoms)), kept.positions(atoms))
                np.moveaxis(value, axis, 0)[gone] = 0
            weight.assign(value)


@pytest.mark.parametrize("make", [branches, sequences, siamese, decoder])
def test_removing_silent_channels_changes_no_output(make: Any) -> None:
    model = make()
    found = anatomy.anatomy(model)
    assert not found.left
    scores = np.random.default_rng(1).random(len(found.classes.label))
    kept = selection.narrowed(found, lambda dimension: 0.5, scores)
    silence(found, kept)
    before, x = weights(model), some_input(model)
    smaller = rebuilding.cut(found, kept)
    assert smaller.count_params() < 0.6 * model.count_params()
    assert smaller.compiled
    np.testing.assert_allclose(smaller.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-4, atol=1e-5)
    smaller.train_on_batch(x, np.ones((4, *model.output_shape[1:]), "float32"))
    assert all(map(np.array_equal, before, weights(model)))


def test_a_grouped_convolution_keeps_of_each_group_its_share() -> None:
    image = keras.Input((4, 4, 4))
    x = L.GroupNormalization(2)(L.Conv2D(8, 1, groups=2)(L.Conv2D(8, 1)(image)))
    smaller = memfit.shrink.slim(keras.Model(image, L.Conv2D(3, 1)(x)), 0.5, verbose=0)
    grouped = smaller.layers[2]
    assert (grouped.filters, grouped.groups, tuple(grouped.kernel.shape)) == (4, 2, (1, 1, 2, 4))


def test_heads_stay_whole_and_queries_go_with_their_keys() -> None:
    x = keras.Input((5, 8))
    attended = L.GroupQueryAttention(4, 4, 2)(x, x)
    smaller = memfit.shrink.slim(keras.Model(x, L.Dense(2)(attended)), 0.5, verbose=0)
    config = smaller.layers[1].get_config()
    assert (config["num_query_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 4)


def test_a_width_for_one_layer_leaves_the_others() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(8, name="a"), L.Dense(8, name="b"), L.Dense(2)])
    smaller = memfit.shrink.slim(model, {"b": 0.25}, verbose=0)
    assert [layer.units for layer in smaller.layers] == [8, 2, 2]


def test_the_channels_that_matter_most_are_kept() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), L.Dense(2)])
    kernel = np.array([[1, 9, 2, 8]] * 4, "float32")
    model.layers[0].set_weights([kernel, np.arange(4.0)])
    smaller = memfit.shrink.slim(model, 0.5, importance="l1", verbose=0)
    assert smaller.layers[0].get_weights()[1].tolist() == [1.0, 3.0]


@keras.saving.register_keras_serializable("tests")
class Scale(L.Layer):
    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale


def test_a_layer_without_a_rule_is_left_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [L.Dense(8), Scale(name="own"), L.Dense(8), L.Dense(2)]
    model = _compiled(keras.Sequential([keras.Input((4,)), *layers]))
    smaller = memfit.shrink.slim(model, 0.5)
    assert [tuple(layer.weights[0].shape) for layer in smaller.layers] == [(4, 8), (8,), (8, 4), (4, 2)]
    assert "own is left as it is: a Scale of your own has no rule" in capsys.readouterr().err


def test_what_cannot_work_is_said_with_the_cure() -> None:
    dense = _compiled(keras.Sequential([keras.Input((4,)), L.Dense(8), L.Dense(2)]))
    data = np.ones((4, 4), "float32"), np.ones((4, 2), "float32")
    for width in (0, 1.5, "half"):
        with pytest.raises(ArgumentError, match="share in"):
            memfit.shrink.slim(dense, width)
    with pytest.raises(ArgumentError, match="make no channels"):
        memfit.shrink.slim(dense, {"nothing": 0.5})
    with pytest.raises(ArgumentError, match="not built"):
        memfit.shrink.slim(keras.Sequential([L.Dense(2)]))
    for sparsity in (0, 1, -0.5, None):
        with pytest.raises(ArgumentError, match="sparsity"):
            memfit.shrink.prune(dense, data, sparsity=sparsity)
    with pytest.raises(ArgumentError, match="data"):
        memfit.shrink.prune(dense, None)
    with pytest.raises(ArgumentError, match="mode"):
        memfit.shrink.quantize(dense, "int3")
    with pytest.raises(ArgumentError, match="calibrate"):
        memfit.shrink.quantize(dense, "gptq")
    with pytest.raises(ArgumentError, match=r"\.tflite"):
        memfit.shrink.quantize(dense, export="model.bin")
    other = _compiled(keras.Sequential([keras.Input((4,)), L.Dense(3)]))
    with pytest.raises(ArgumentError, match="same outputs"):
        memfit.shrink.distill(dense, other, data)
    with pytest.raises(ArgumentError, match="different names"):
        memfit.shrink.compare([], data)


def test_pruned_weights_stay_at_zero_while_training_and_after_saving(tmp_path: Path) -> None:
    model = _compiled(keras.Sequential([keras.Input((6,)), L.Dense(16, activation="relu"), L.Dense(2)]))
    before = weights(model)
    data = np.random.default_rng(0).normal(size=(32, 6)).astype("float32"), np.ones((32, 2), "float32")
    pruned = memfit.shrink.prune(model, data, sparsity=0.75, structured=False, steps=2, verbose=0)
    assert masking.sparsity_of(pruned) == pytest.approx(0.75, abs=0.02)
    trained = weights(pruned)
    assert not np.array_equal(trained[0][trained[0] != 0], before[0][trained[0] != 0])
    assert all(weight.constraint is None for weight in pruned.weights)
    pruned.save(tmp_path / "pruned.keras")
    assert all(map(np.array_equal, trained, weights(keras.saving.load_model(tmp_path / "pruned.keras"))))
    assert all(map(np.array_equal, before, weights(model)))


def test_structured_pruning_ends_at_its_share_in_any_number_of_steps() -> None:
    model = branches()
    x = some_input(model, 8)
    pruned = memfit.shrink.prune(model, (x, np.ones((8, 5), "float32")), sparsity=0.5, steps=2, verbose=0)
    assert [layer.filters for layer in pruned.layers if type(layer).__name__ == "Conv2D"] == [4, 4, 8]


def test_advice_is_what_the_changed_model_takes() -> None:
    image = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 5, padding="same", activation="relu")(image)
    x = L.Dense(64, activation="relu")(L.Flatten()(x))
    model = keras.Model(image, L.Dense(4)(x))
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    before = weights(model)
    advice = memfit.shrink.advise(model, batch_size=8, quick=True, verbose=0)
    kinds = {one.kind for one in advice}
    assert {"width", "global pooling", "optimizer", "sparse labels"} <= kinds
    assert [one.saved for one in advice] == sorted((one.saved for one in advice), reverse=True)
    pooling = next(one for one in advice if one.kind == "global pooling")
    changed = pooling.apply()
    assert changed.compiled
    assert changed.count_params() == pooling.after.parameters
    # What the Dense layer answers to an image that is the same everywhere is kept: here that of a single position.
    assert np.allclose(weights(changed)[2], before[2].reshape(-1, 8, 64).sum(0), atol=1e-4)
    assert "<table>" in advice._repr_html_()
    assert all(map(np.array_equal, before, weights(model)))


def test_a_changed_embedding_is_as_near_as_it_can_be() -> None:
    from memfit.shrink import changes_embeddings

    model = _compiled(keras.Sequential([keras.Input((3,), dtype="int32"), L.Embedding(324, 16), L.LSTM(4)]))
    low, high = np.random.default_rng(0).normal(size=(2, 18, 16)).astype("float32")
    words = np.arange(324)
    model.layers[0].set_weights([low[words % 18] + high[words // 18]])
    changed = {one.kind: one.build() for one in changes_embeddings.all_of(model)}
    x = np.array([[0, 17, 323], [5, 18, 200]], "int32")
    np.testing.assert_allclose(
        changed["hashed embedding"].predict_on_batch(x), model.predict_on_batch(x), rtol=1e-3, atol=1e-4
    )
    assert changed["low-rank embedding"].output_shape == model.output_shape


def test_adapters_leave_the_outputs_and_freeze_the_kernels() -> None:
    from memfit.shrink import changes_training

    model = _compiled(keras.Sequential([keras.Input((64,)), L.Dense(64), L.Dense(2)]))
    (lora,) = [one for one in changes_training.all_of(model) if one.kind == "LoRA"]
    changed, x = lora.build(), np.ones((2, 64), "float32")
    np.testing.assert_allclose(changed.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-5)
    assert sum(int(np.prod(v.shape)) for v in changed.trainable_variables) < 1000


def classifier(units: int) -> Any:
    model = keras.Sequential([keras.Input((6,)), L.Dense(units, activation="relu"), L.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


@pytest.mark.skipif(not hasattr(keras, "distillation"), reason="this Keras has no Distiller")
def test_a_student_learns_the_same_from_the_disk_as_from_the_teacher() -> None:
    teacher, data = classifier(16), (np.random.default_rng(0).normal(size=(12, 6)).astype("float32"), np.arange(12) % 3)
    before, students = weights(teacher), {}
    start = weights(classifier(4))
    for how in ("disk", "step", "half"):
        student = classifier(4)
        student.set_weights(start)
        memfit.shrink.distill(teacher, student, data, how=how, batch_size=6, shuffle=False, verbose=0)
        students[how] = weights(student)
    for one, other in zip(students["disk"], students["step"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(students["half"], students["step"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-2)
    assert not np.allclose(students["step"][0], start[0])
    assert all(map(np.array_equal, before, weights(teacher)))
    assert all(layer.trainable for layer in teacher.layers)


@pytest.mark.skipif(not hasattr(keras, "distillation"), reason="this Keras has no Distiller")
@pytest.mark.parametrize("from_logits", [True, False])
def test_what_a_student_learns_from_is_the_divergence_of_softened_probabilities(from_logits: bool) -> None:
    """As Hinton et al. (2015) have it, T^2 included; Keras itself takes logits for probabilities where the loss is a name."""
    teacher, rng = classifier(4), np.random.default_rng(0)
    teacher.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    logits = rng.normal(size=(2, 5, 3)).astype("float32") * 4

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(logits[0] / 3), softmax(logits[1] / 3)
    expected = 9 * np.mean(np.sum(p * np.log(p / q), axis=-1))
    given = logits if from_logits else softmax(logits)
    found = teaching.loss_for(teacher, teacher, 3.0).compute_loss(*map(ops.convert_to_tensor, given))
    np.testing.assert_allclose(float(found), expected, rtol=1e-3)


def test_int8_takes_less_and_says_nearly_the_same(tmp_path: Path) -> None:
    model, data = classifier(64), (np.random.default_rng(0).normal(size=(16, 6)).astype("float32"), np.arange(16) % 3)
    done = memfit.shrink.quantize(model, "int8", data, verbose=0)
    assert done.before is not None
    assert done.after is not None
    assert done.after.training is None
    done.model.save(tmp_path / "int8.keras")
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_allclose(loaded.predict_on_batch(data[0]), model.predict_on_batch(data[0]), atol=0.1)
    assert keras.backend.standardize_dtype(loaded.layers[0].kernel.dtype) == "int8"
    assert model.layers[0].quantization_mode is None


def attentive() -> Any:
    sequence = keras.Input((6, 8))
    x = sequence + L.MultiHeadAttention(2, 4)(sequence, sequence)
    return _compiled(keras.Model(sequence, L.Dense(3)(L.Dense(16, activation="relu")(x))))


@pytest.mark.parametrize(("mode", "error"), [("int8", 0.01), ("int4", 0.1), ("float8", 0.05)])
def test_a_quantized_model_with_attention_loads_again(mode: str, error: float, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model, x = attentive(), np.random.default_rng(0).normal(size=(16, 6, 8)).astype("float32")
    done = memfit.shrink.quantize(model, mode, verbose=0)
    assert (done.left, done.unsaved) == ((), ())
    done.model.save(tmp_path / "model.keras")
    before, after = model.predict_on_batch(x), done.model.predict_on_batch(x)
    assert 0 < np.square(after - before).mean() < error * np.square(before).mean()
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict_on_batch(x), after, atol=1e-5)


@pytest.mark.skipif(not hasattr(keras.quantizers, "AWQConfig"), reason="this Keras has no AWQ")
def test_awq_says_nearly_the_same_and_whether_it_can_be_saved(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32,)), L.Dense(64, activation="relu"), L.Dense(64), L.Dense(4)])
    x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
    done = memfit.shrink.quantize(model, "awq", (x,), verbose=0)
    assert [layer.quantization_mode for layer in done.model.layers] == ["awq"] * 3
    before, after = model.predict_on_batch(x), done.model.predict_on_batch(x)
    assert np.square(after - before).mean() < 0.05 * np.square(before).mean()
    done.model.save(tmp_path / "model.keras")
    if done.unsaved:
        assert "does not load again" in str(done)
        with pytest.raises(ValueError, match="could not be loaded"):
            keras.saving.load_model(tmp_path / "model.keras")
    else:
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded.predict_on_batch(x), after, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="LiteRT files take TensorFlow")
def test_a_litert_file_says_nearly_the_same(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(8, 3, activation="relu"), L.Flatten(), L.Dense(64)])
    path = tmp_path / "model.tflite"
    done = memfit.shrink.quantize(model, "int8", export=path, verbose=0)
    assert done.exported == path.stat().st_size < 2 * rebuilding.parameters(model)
    assert list(tmp_path.iterdir()) == [path]
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    # In a process of its own: no two frameworks in one.
    code = (
        "import sys, numpy as np, tensorflow as tf; lite = tf.lite.Interpreter(model_path=sys.argv[1]); "
        "lite.allocate_tensors(); lite.set_tensor(lite.get_input_details()[0]['index'], np.load(sys.argv[2])); "
        "lite.invoke(); np.save(sys.argv[2], lite.get_tensor(lite.get_output_details()[0]['index']))"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "x.npy")], check=True, capture_output=True)
    said = model.predict_on_batch(x)
    assert np.square(np.load(tmp_path / "x.npy") - said).mean() < 0.01 * np.square(said).mean()


@pytest.mark.skipif(not hasattr(keras.quantizers, "GPTQConfig"), reason="this Keras has no GPTQ")
def test_gptq_calibrates_on_samples_of_any_kind() -> None:
    keras.utils.set_random_seed(0)
    # The first layer has columns of one sign, which Keras' zero points get wrong: it is left.
    model = keras.Sequential([keras.Input((2,)), L.Dense(64, activation="relu"), L.Dense(64), L.Dense(4)])
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    done = memfit.shrink.quantize(model, "gptq", (x,), verbose=0)
    assert [layer.quantization_mode for layer in done.model.layers] == [None, "gptq", "gptq"]
    assert done.left == (model.layers[0].name,)
    before, after = model.predict_on_batch(x), done.model.predict_on_batch(x)
    assert np.square(after - before).mean() < 0.05 * np.square(before).mean()


def test_a_comparison_has_a_row_for_each_model() -> None:
    data = np.ones((16, 6), "float32"), np.arange(16) % 3
    found = memfit.shrink.compare({"large": classifier(64), "small": classifier(8)}, data)
    assert [row.name for row in found] == ["large", "small"]
    assert found[0].disk > found[1].disk
    assert found[0].training > found[1].training
    assert found[0].score_name == "accuracy"
    assert str(found).count("\n") == 2
    with pytest.raises(ArgumentError, match="Received: against='speed'"):
        found.plot("speed")


def test_a_plot_has_a_point_for_each_model_that_has_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def row(name: str, training: int | None, score: float | None) -> Measured:
        return Measured(name, 100, 400, training, 2**20, 10.0, score, "accuracy")

    found = Comparison((row("a", 2**21, 0.5), row("b", None, 0.6), row("c", 2**22, None)), 32)
    axes = found.plot().axes[0]
    assert [text.get_text() for text in axes.texts] == ["a"]
    assert [tuple(spot) for points in axes.collections for spot in points.get_offsets().tolist()] == [(2.0, 0.5)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training in MiB", "accuracy")
    assert [text.get_text() for text in found.plot("parameters").axes[0].texts] == ["a", "b"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MemfitError, match=r"memfit\[plots\]"):
        found.plot()


@pytest.mark.parametrize(
    "name", ["advising", "comparing", "distilling", "masking", "pruning", "quantizing", "slimming"]
)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"memfit.shrink.{name}"))
    assert results.attempted
    assert not results.failed
