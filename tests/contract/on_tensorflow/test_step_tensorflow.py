"""Graphs of a step in parts and of a test on TensorFlow: how large they are, what is let go of, that they compute alike."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("for the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from memfit import backends
from memfit.backends import keras_seam
from memfit.backends.on_tensorflow import analysis, step
from memfit.planning.request import Request
from memfit.predicting import Predictions
from memfit.profiling.batches import Batches
from memfit.records import NO_LEVERS, Budget, Split, TensorSpec
from memfit.tiny_batches import TinyBatches
from memfit.units import GIB, MIB

WORDS = 12


def embedding_model() -> Any:
    """With a sparse gradient, a mask that is counted, and a weight that is not used."""
    keras.utils.set_random_seed(0)
    x = keras.Input((WORDS,), dtype="int32")
    hidden = keras.layers.LayerNormalization()(keras.layers.Embedding(50, 8, mask_zero=True)(x))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.LSTM(8)(hidden)))
    model.compile("adam", "mse", jit_compile=False)
    return model


def batch_of(num_samples: int) -> Any:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, size=(num_samples, WORDS)).astype("int32")
    return x, rng.normal(size=(num_samples, 3)).astype("float32"), rng.uniform(size=num_samples).astype("float32")


def specs(num_samples: int) -> Any:
    return tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), batch_of(num_samples))


@pytest.mark.parametrize("num_samples", [8, 6])
def test_the_graph_of_a_step_in_parts_holds_the_model_once(num_samples: int) -> None:
    """All parts full, and a first part that takes what is left over."""
    layers = [keras.layers.Dense(8, activation="gelu") for _ in range(3)]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    batch = tf.TensorSpec((num_samples, 8)), tf.TensorSpec((num_samples, 1)), None
    keras_seam.symbolic_build(model, batch)

    def products(train_step: Any) -> int:
        graph = tf.function(lambda x, y: train_step((x, y)), autograph=False).get_concrete_function(*batch[:2]).graph
        definition = graph.as_graph_def()
        nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
        return sum(node.op == "MatMul" for node in nodes)

    assert products(step.train_step(model, Split(4))) == products(model.train_step) > 8


def test_the_part_that_tells_what_the_loop_carries_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs = embedding_model(), []
    keras_seam.symbolic_build(model, batch_of(8))
    made = tf.__internal__.FuncGraph

    def watched(name: str) -> Any:
        graph = made(name)
        graphs.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(tf.__internal__, "FuncGraph", watched)
    analysis.traced(step.train_step(model, Split(4)), specs(8))
    assert graphs
    assert not any(graph() for graph in graphs)


@pytest.mark.parametrize("split", [None, Split(2), Split(3)])
def test_gradients_are_the_same_traced(split: Split | None) -> None:
    model = embedding_model()
    keras_seam.symbolic_build(model, batch_of(8))
    loss, untraced = step.gradients(model, batch_of(5), split)
    with keras_seam.marked_for_traced_tests(model), keras_seam.keeping_programs(model):
        traced_loss, traced = step.gradients(model, batch_of(5), split)
        assert list(keras_seam.kept_programs(model)) == ["whole" if split is None else split]
    assert not keras_seam.tests_are_traced(model)
    assert traced_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(traced, untraced, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("room", "is_traced"), [(4 * GIB, False), (128 * MIB, True)])
def test_a_test_is_traced_where_what_it_leaves_would_take_much_of_the_room(room: int, is_traced: bool) -> None:
    layers = [keras.layers.Conv2D(32, 3, padding="same") for _ in range(2)]
    model = keras.Sequential([keras.Input((128, 128, 3)), *layers, keras.layers.GlobalAveragePooling2D()])
    model.compile("sgd", "mse", jit_compile=False)
    spec = (TensorSpec((8, 128, 128, 3), "float32"), TensorSpec((8, 32), "float32"), None)
    keras_seam.symbolic_build(model, spec)
    backend = backends.current()
    prediction = Predictions(model, spec, backend, quiet=True)
    batches = Batches(spec, 8, 8, lambda n: keras_seam.map_leaves(lambda leaf: np.ones((n, *leaf.shape[1:])), spec))
    request = Request(Budget(prediction.idle() + room, ""), frozenset(), quiet=True)
    tests = TinyBatches(model, batches, prediction, backend, plain=NO_LEVERS, request=request)
    with tests.running(batches.sample(2), "testing"):
        assert keras_seam.tests_are_traced(model) == is_traced
    assert not keras_seam.tests_are_traced(model)
