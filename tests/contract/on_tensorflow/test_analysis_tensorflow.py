"""What the analysis of a TensorFlow step counts, on graphs small enough to count by hand, and that it changes nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("for the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from memfit import backends, deciding
from memfit.arranging import Request
from memfit.backends import host_allocator, keras_seam
from memfit.backends.on_tensorflow import analysis, custom_gradients, heap, lowering, memory, moments, step
from memfit.backends.on_tensorflow.arena import Arena
from memfit.backends.on_tensorflow.heap import Heap
from memfit.backends.on_tensorflow.program import UnknownSizeError, Walker, resized
from memfit.errors import DoesNotFitError
from memfit.profiling import batches, peak
from memfit.records import Budget, Split, TensorSpec

MIB = 1024**2


def live_peak(function, *specs):
    """Bytes that a function holds at its peak, its arguments included."""
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    captured = {id(tensor) for _, tensor in graph.captures}
    walker = Walker()
    walker.step(
        lowering.lower(graph),
        [0 if id(tensor) in captured else lowering.known_bytes(tensor) for tensor in graph.inputs],
    )
    assert walker.arena.live == 0
    return walker.arena.peak


def floats(*shape):
    return tf.TensorSpec(shape, tf.float32)


def spec_of(batch_size, x_shape, y_shape=(1,)):
    return TensorSpec((batch_size, *x_shape), "float32"), TensorSpec((batch_size, *y_shape), "float32"), None


def built(model, batch, optimizer="sgd", **arguments):
    model.compile(optimizer, "mse", **{"jit_compile": False, **arguments})
    keras_seam.symbolic_build(model, batch)
    return model


def cnn(batch, **arguments):
    layers = keras.layers
    return built(
        keras.Sequential(
            [
                keras.Input(batch[0].shape[1:]),
                layers.Conv2D(32, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(1),
            ]
        ),
        batch,
        **arguments,
    )


# Exact sizes


def test_every_tensor_that_is_still_read_counts():
    # The argument, the product, and the product's transpose; the product is read again at the end.
    def function(x):
        product = tf.matmul(x, x)
        return tf.matmul(product, tf.transpose(product))

    kilobytes = 4 * 256 * 256
    assert live_peak(function, floats(256, 256)) == 4 * kilobytes


def test_tensor_is_free_after_its_last_reader():
    def function(x):
        for _ in range(5):
            x = tf.matmul(x, x)
        return x

    # The argument, one operand, one product.
    assert live_peak(function, floats(64, 64)) == 3 * 4 * 64 * 64


def test_aliases_and_in_place_operations_cost_nothing():
    def function(x):
        hidden = tf.matmul(x, x)
        hidden = tf.nn.relu(tf.reshape(hidden, (-1,)))
        return tf.reshape(hidden * 2.0 + 1.0, (64, 64))

    assert live_peak(function, floats(64, 64)) == 2 * 4 * 64 * 64


def test_operation_nobody_needs_does_not_count():
    def function(x):
        tf.matmul(x, tf.matmul(x, x))
        return tf.reduce_sum(x)

    assert live_peak(function, floats(64, 64)) == 4 * 64 * 64 + 4


def test_variables_are_held_between_steps_and_do_not_count():
    variable = tf.Variable(tf.zeros((512, 64)))

    def function(x):
        return tf.matmul(x, variable)

    assert live_peak(function, floats(16, 512)) == 4 * 16 * (512 + 64)


def test_called_function_counts_in_line():
    inner = tf.function(lambda x: tf.matmul(tf.matmul(x, x), x), autograph=False)

    assert live_peak(lambda x: inner(x), floats(64, 64)) == 3 * 4 * 64 * 64


def test_loop_that_keeps_nothing_costs_one_turn():
    def function(x):
        return tf.while_loop(lambda i, _: i < 1000, lambda i, y: (i + 1, tf.matmul(y, x)), (tf.constant(0), x))[1]

    # The argument, the loop's variable and its successor; counters beside them.
    size = 4 * 64 * 64
    assert 3 * size <= live_peak(function, floats(64, 64)) < 3 * size + 64


@pytest.mark.parametrize("num_turns", [4, 20, 300])
def test_gradient_through_a_loop_keeps_every_turn(num_turns):
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.while_loop(
                lambda i, _: i < num_turns,
                lambda i, y: (i + 1, tf.tanh(tf.matmul(y, y))),
                (tf.constant(0), x),
                maximum_iterations=num_turns,
            )[1]
        return tape.gradient(y, x)

    size = 4 * 64 * 64
    assert (num_turns + 1) * size <= live_peak(function, floats(64, 64)) <= (num_turns + 6) * size


def test_loop_of_unknown_length_that_keeps_turns_is_not_guessed():
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.while_loop(lambda y: tf.reduce_sum(y) < 9.0, lambda y: (tf.tanh(tf.matmul(y, y)),), (x,))[0]
        return tape.gradient(y, x)

    with pytest.raises(UnknownSizeError, match="turns"):
        live_peak(function, floats(8, 8))


def test_larger_branch_counts():
    def function(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: tf.matmul(tf.matmul(x, x), x), lambda: x + 1.0)

    size = 4 * 64 * 64
    assert 3 * size <= live_peak(function, floats(64, 64)) <= 3 * size + 16


def test_shape_that_depends_on_the_data_is_bounded_by_what_it_comes_from():
    def function(x):
        values, _ = tf.unique(x)
        return tf.reduce_sum(values)

    assert live_peak(function, floats(1024)) == 4 * 1024 * 3


# The arena


def test_arena_reuses_a_chunk_of_the_right_size():
    arena = Arena()
    for _ in range(5):
        arena.give(arena.take(MIB), MIB)

    assert (arena.resident, arena.live, arena.peak) == (MIB, 0, MIB)


def test_arena_never_shrinks_and_leaves_gaps():
    arena = Arena()
    first, second = arena.take(4 * MIB), arena.take(4 * MIB)
    arena.give(first, 4 * MIB)
    arena.take(6 * MIB)  # fits in no gap

    assert arena.live == 10 * MIB
    assert arena.resident == 14 * MIB
    arena.give(second, 4 * MIB)
    assert arena.resident == 14 * MIB


def test_arena_joins_neighbours():
    arena = Arena()
    arena.give(arena.take(16 * MIB), 16 * MIB)
    parts = [arena.take(4 * MIB) for _ in range(4)]
    for part in parts:
        arena.give(part, 4 * MIB)
    arena.take(16 * MIB)

    assert arena.resident == 16 * MIB


# The C library's heaps


def test_large_blocks_go_back_to_the_system():
    blocks = Heap()
    for _ in range(3):
        blocks.give(blocks.take(64 * MIB), 64 * MIB)
    blocks.take(MIB)

    assert (blocks.resident, blocks.live, blocks.peak) == (64 * MIB, MIB, 64 * MIB)


def test_freed_small_blocks_stay_beside_large_ones():
    blocks = Heap()
    size = MIB // 2
    small = [blocks.take(size) for _ in range(60)]
    for block in small:
        blocks.give(block, size)
    blocks.take(100 * MIB)

    assert blocks.peak == 100 * MIB
    assert blocks.resident == 100 * MIB + int(heap._KEPT * 30 * MIB)


def test_allocator_follows_onednn(monkeypatch):
    monkeypatch.delenv("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", raising=False)
    assert (heap.of_this_process() is Arena) == heap.has_onednn()
    monkeypatch.setattr(heap, "has_onednn", lambda: True)
    assert heap.of_this_process() is Arena
    monkeypatch.setenv("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    assert heap.of_this_process() is Heap
    monkeypatch.setattr(heap, "has_onednn", lambda: False)
    assert heap.of_this_process() is Heap


def test_environment_switches_onednn_off():
    code = "from memfit.backends.on_tensorflow import heap; print(heap.of_this_process().__name__)"
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert child.stdout.split()[-1] == "Heap"


def test_pooling_backwards_without_onednn_takes_its_places(monkeypatch):
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return tape.gradient(y, x)

    spec = floats(4, 32, 32, 8)
    num_outputs = 4 * 16 * 16 * 8
    peaks = []
    for onednn in (True, False):
        monkeypatch.setattr(heap, "has_onednn", lambda onednn=onednn: onednn)
        peaks.append(live_peak(function, spec))

    # An int64 for each output while the gradient runs, no byte beside each since the forward pass.
    assert peaks[1] - peaks[0] == (8 - 1) * num_outputs


@pytest.mark.parametrize("split", [None, Split(4)])
@pytest.mark.parametrize("onednn", [True, False])
def test_attached_step_without_onednn_maps_large_blocks(monkeypatch, onednn, split):
    if tf.config.get_visible_devices("GPU"):
        pytest.skip("tensors live on the GPU")
    calls = []

    def map_large_blocks():
        calls.append("mapped")
        return lambda: calls.append("restored")

    monkeypatch.delenv("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", raising=False)
    monkeypatch.setattr(heap, "has_onednn", lambda: onednn)
    monkeypatch.setattr(host_allocator, "map_large_blocks", map_large_blocks)
    batch = spec_of(16, (8,))
    model = built(keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]), batch)
    step.attach(model, split)()

    assert calls == ([] if onednn else ["mapped", "restored"])


@pytest.mark.parametrize("rest", [32, 232])
def test_smaller_batches_at_the_end_of_epochs_lie_otherwise_in_the_arena(rest, monkeypatch):
    monkeypatch.setattr(heap, "of_this_process", lambda: Arena)
    layers = keras.layers
    batch = spec_of(192, (512, 8))
    hidden = [layers.Dense(32, "tanh", use_bias=False) for _ in range(8)]
    ends = layers.GlobalAveragePooling1D(), layers.Dense(1)
    model = built(keras.Sequential([keras.Input((512, 8)), *hidden, *ends]), batch)

    alone, with_rest = (analysis.step_bytes(model, batch, Split(96), "train", last) for last in (0, rest))

    assert with_rest.bytes > alone.bytes
    assert analysis.step_bytes(model, batch, Split(96), "train", 96) == alone, "as large as the parts"


def test_a_program_for_fewer_samples_keeps_the_sizes_of_weights():
    model = built(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)]), spec_of(16, (8,), (4,)))
    weights = 8 * 4 * 4
    program, argument_sizes = analysis.traced(model.train_step, (floats(16, 8), floats(16, 4), None))

    smaller, smaller_sizes = resized(program, argument_sizes, 16, 4, but={weights})

    def sizes(of):
        return [size for operation in of.operations for size in operation.sizes]

    assert (16 * 4 * 4) in sizes(program)
    assert {one: other for one, other in zip(sizes(program), sizes(smaller), strict=True) if one in (weights, 256)} == {
        weights: weights,
        256: 64,
    }
    assert max(smaller_sizes) == 4 * 8 * 4
    assert resized(program, argument_sizes, 16, 16, but=()) == (program, argument_sizes)


# The moment


def test_peak_of_a_cnn_is_where_its_first_layers_gradients_are():
    batch = spec_of(64, (64, 64, 3))
    model = cnn(batch)
    names = {layer.path or layer.name for layer in model.layers}
    for split in (None, Split(16)):
        moment = analysis.step_bytes(model, batch, split).moment

        assert moment.phase == "backward"
        assert moment.layer in names
        assert moment.layer.split("/")[-1].startswith(("conv2d", "max_pooling2d"))
        assert moment.operation in ("MaxPoolGrad", "ReluGrad", "Conv2DBackpropFilter")


def test_peak_of_large_weights_is_the_update():
    batch = spec_of(1, (2048,), (1024,))
    model = built(keras.Sequential([keras.Input((2048,)), keras.layers.Dense(1024)]), batch, "adam")
    moment = analysis.step_bytes(model, batch, None).moment

    assert (moment.phase, moment.layer) == ("update", None)


def test_layers_are_told_apart_where_names_look_numbered():
    # The step's scopes may be "wide_1" for "wide" and "wide_1_1" for "wide_1".
    layers = keras.layers
    batch = spec_of(8, (64,))
    hidden = [layers.Dense(8, name=name) for name in ("wide", "wide_1")]
    model = built(keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(1, name="last")]), batch)
    program, _ = analysis.traced(model.train_step, keras_seam.map_leaves(lambda s: floats(*s.shape), batch))
    products = [moments.moment(model, program, o) for o in program.operations if o.name == "MatMul"]
    found = [(moment.phase, moment.layer.split("/")[-1]) for moment in products]

    forward = [("forward", name) for name in ("wide", "wide_1", "last")]
    assert found[:3] == forward
    assert set(found[3:]) == {("backward", name) for name in ("wide", "wide_1", "last")}


def test_workspace_is_what_no_tensor_holds():
    batch = spec_of(64, (64, 64, 3))
    model = cnn(batch)
    estimate = analysis.step_bytes(model, batch, None)
    program, sizes = analysis.traced(model.train_step, keras_seam.map_leaves(lambda s: floats(*s.shape), batch))
    walker = Walker()
    walker.step(program, sizes)

    assert estimate.bytes - estimate.workspace == walker.arena.peak
    assert estimate.workspace >= analysis._GRAPH_FIXED


# Test and predict steps


@pytest.mark.parametrize("jit_compile", [False, True])
def test_only_a_train_step_keeps_what_a_gradient_needs(jit_compile):
    batch = spec_of(128, (64, 64, 3))
    model = cnn(batch, jit_compile=jit_compile)
    train, test, predict = (analysis.step_bytes(model, batch, None, kind) for kind in ("train", "test", "predict"))

    inputs = 128 * 64 * 64 * 3 * 4
    assert inputs <= predict.bytes < 0.8 * train.bytes
    assert inputs <= test.bytes < 0.8 * train.bytes
    assert train.source == test.source == predict.source


def test_prediction_holds_its_input_and_its_output():
    batch = TensorSpec((256, 16), "float32"), None, None
    model = built(keras.Sequential([keras.Input((16,)), keras.layers.Dense(4096)]), spec_of(256, (16,), (4096,)))
    estimate = analysis.step_bytes(model, batch, None, "predict")
    inputs, outputs = 256 * 16 * 4, 256 * 4096 * 4

    # The product, and its sum with the bias in the same place.
    assert estimate.bytes - estimate.workspace == inputs + outputs
    assert estimate.moment.phase == "forward"


@pytest.mark.parametrize("jit_compile", [False, True])
def test_prediction_of_a_compiled_model_counts_its_output(jit_compile):
    batch = spec_of(256, (16,), (4096,))
    model = built(keras.Sequential([keras.Input((16,)), keras.layers.Dense(4096)]), batch, jit_compile=jit_compile)

    assert analysis.step_bytes(model, batch, None, "predict").bytes >= 256 * 4096 * 4


def test_steps_of_the_models_own_are_analysed():
    seen = []

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def test_step(self, data):
            x, _y = data
            seen.append("test")
            return {"sum": tf.reduce_sum(tf.matmul(x, x, transpose_b=True))}

        def predict_step(self, data):
            seen.append("predict")
            return tf.matmul(data, data, transpose_b=True)

    batch = spec_of(1024, (8,))
    model = built(Own(), batch)
    for kind in ("test", "predict"):
        estimate = analysis.step_bytes(model, batch, None, kind)
        assert estimate.bytes - estimate.workspace >= 1024 * 1024 * 4

    assert set(seen) == {"test", "predict"}


# The whole step


def test_weights_and_slots_do_not_count_gradients_do():
    batch = spec_of(1, (4096,), (1024,))
    model = built(keras.Sequential([keras.Input((4096,)), keras.layers.Dense(1024)]), batch, "adam")
    program, sizes = analysis.traced(model.train_step, keras_seam.map_leaves(lambda s: floats(*s.shape), batch))
    walker = Walker()
    walker.step(program, sizes)

    weights = 4 * 4096 * 1024
    # The gradient and the optimizer's temporaries: not the 3 times that weights and slots take.
    assert weights <= walker.arena.peak <= 3.1 * weights


def test_grows_with_the_batch():
    figures = []
    for batch_size in (4, 8, 16, 32, 64):
        batch = spec_of(batch_size, (64, 64, 3))
        figures.append(analysis.step_bytes(cnn(batch), batch, None).bytes)

    assert figures == sorted(figures)
    assert figures[-1] > figures[0] + 2 * 32 * 62 * 62 * 4 * 60


def test_below_what_the_graph_takes_no_other_step_is_traced(monkeypatch):
    model = cnn(spec_of(8, (64, 64, 3)))
    figures = [analysis.step_bytes(model, spec_of(size, (64, 64, 3)), None) for size in (8, 32)]
    assert 0 < figures[0].fixed == figures[1].fixed < figures[0].bytes
    asked, step_bytes = [], analysis.step_bytes

    def counting(model, batch, split, kind="train", rest=0):
        asked.append((split, kind))
        return step_bytes(model, batch, split, kind, rest)

    monkeypatch.setattr(backends.current(), "step_bytes", counting)
    monkeypatch.setattr(peak, "on_top_of_now", lambda step, **_: step)  # what the process holds moves by itself
    x, y = np.zeros((32, 64, 64, 3), "float32"), np.zeros((32, 1), "float32")
    found, _ = batches.described({"x": x, "y": y, "batch_size": 32})
    budget = Budget(int(0.6 * figures[0].fixed), "asked for")
    request = Request(budget=budget, allow=frozenset(), probe=False, quiet=True)
    with pytest.raises(DoesNotFitError):
        deciding.decide(model, found, request, backend=backends.current())
    assert [split for split, kind in asked if kind == "train"] == [None]


def test_smaller_parts_take_less():
    batch = spec_of(64, (64, 64, 3))
    model = cnn(batch)
    figures = [analysis.step_bytes(model, batch, split).bytes for split in (Split(8), Split(16), Split(32), None)]

    assert figures == sorted(figures)
    assert figures[0] < figures[-1] / 2


def test_split_of_the_whole_batch_is_the_plain_step():
    batch = spec_of(32, (64, 64, 3))
    model = cnn(batch)
    plain, whole = (analysis.step_bytes(model, batch, split).bytes for split in (None, Split(32)))

    assert abs(whole - plain) <= 0.1 * plain


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_keep_every_turn(layer):
    figures = []
    for length in (20, 80):
        batch = spec_of(64, (length, 8))
        cell = getattr(keras.layers, layer)(64)
        model = built(keras.Sequential([keras.Input((length, 8)), cell, keras.layers.Dense(1)]), batch)
        figures.append(analysis.step_bytes(model, batch, None).bytes)

    # At least the state of each turn.
    assert figures[1] - figures[0] >= 60 * 64 * 64 * 4


def test_sparse_gradients_of_an_embedding_are_analysed_whole_and_in_parts():
    batch = TensorSpec((64, 16), "int32"), TensorSpec((64, 1), "float32"), None
    layers = keras.layers
    model = keras.Sequential([keras.Input((16,), dtype="int32"), layers.Embedding(500, 8), layers.Flatten()])
    model.add(layers.Dense(1))
    built(model, batch, "adam")

    assert analysis.step_bytes(model, batch, None) is not None
    assert analysis.step_bytes(model, batch, Split(16)) is not None


def test_nested_inputs_and_sample_weights():
    layers = keras.layers
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((4,), name="b")}
    outputs = layers.Dense(1)(layers.Concatenate()([inputs["a"], inputs["b"]]))
    x = {"a": TensorSpec((16, 8), "float32"), "b": TensorSpec((16, 4), "float32")}
    batch = x, TensorSpec((16, 1), "float32"), TensorSpec((16,), "float32")
    model = built(keras.Model(inputs, outputs), batch)

    assert analysis.step_bytes(model, batch, Split(4)).source == "graph liveness"


def test_xla_is_asked_for_its_buffers():
    batch = spec_of(64, (256,))
    model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(2048, activation="relu"), keras.layers.Dense(1)])
    estimate = analysis.step_bytes(built(model, batch, jit_compile=True), batch, None)

    assert estimate.source == "XLA buffer assignment"
    assert estimate.moment is None
    assert estimate.bytes >= 64 * 2048 * 4


def test_compiling_is_guessed_where_xla_is_asked_for():
    batch = spec_of(8, (64, 64, 3))
    guessed = analysis.compiling_bytes(cnn(batch, jit_compile=True))
    estimate = analysis.step_bytes(cnn(batch, jit_compile=True), batch, None)
    assert guessed <= estimate.margin  # what is not compiled for want of room would not have been said to fit
    deep = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(100))])
    assert guessed < analysis.compiling_bytes(built(deep, spec_of(8, (4,), (4,)), jit_compile=True)) < 1024 * MIB
    assert analysis.compiling_bytes(cnn(batch)) == 0


def test_eager_step_cannot_be_analysed():
    batch = spec_of(4, (8,))
    model = built(keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]), batch)
    model.run_eagerly = True

    assert analysis.step_bytes(model, batch, None) is None


# The model stays as it was


def test_model_is_unchanged():
    batch = spec_of(16, (8, 8, 3))
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.5)]
    )
    model.add(layers.Flatten())
    model.add(layers.Dense(1))
    built(model, batch, "adam", metrics=["mae"])
    x, y = np.ones((32, 8, 8, 3), "float32"), np.ones((32, 1), "float32")
    model.fit(x, y, batch_size=16, verbose=0)
    function = model.train_function
    variables = [*model.variables, *model.optimizer.variables, *(v for m in model.metrics for v in m.variables)]
    before = [np.array(variable) for variable in variables]

    for split in (None, Split(4)):
        assert analysis.step_bytes(model, batch, split) is not None

    assert model.train_function is function
    assert "train_step" not in vars(model)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)
    model.fit(x, y, batch_size=16, verbose=0)


def test_traced_graph_is_dropped():
    batch = spec_of(16, (8,))
    model = built(keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]), batch)
    graphs = []
    plain = type(model).train_step

    def train_step(data):
        graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
        return plain(model, data)

    keras_seam.set_attribute(model, "train_step", train_step)
    analysis.step_bytes(model, batch, None)
    gc.collect()

    assert graphs
    assert all(graph() is None for graph in graphs)


# Device memory


def test_releasing_forgets_the_graphs_of_training_steps_alone():
    """Plain Keras keeps the graph of each model that was ever trained; another graph's gradient is still to be had."""
    squashed = tf.function(tf.nn.silu, autograph=False)
    squashed(tf.ones((3,)))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="silu"), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    registry = custom_gradients._registry()
    known = set(registry)
    model.fit(np.ones((8, 8), "float32"), np.ones((8, 1), "float32"), verbose=0)
    graphs = [weakref.ref(custom_gradients._owner(registry[name])[0]) for name in set(registry) - known]
    assert len(graphs) >= 2
    del model
    gc.collect()
    assert all(graph() is not None for graph in graphs)

    backends.current().release()

    assert all(graph() is None for graph in graphs)
    with tf.GradientTape() as tape:
        x = tf.Variable(tf.ones((3,)))
        y = tf.reduce_sum(squashed(x))
    assert tape.gradient(y, x) is not None


def test_training_goes_on_after_a_release():
    model = cnn(spec_of(8, (16, 16, 3)))
    x, y = np.ones((8, 16, 16, 3), "float32"), np.ones((8, 1), "float32")
    model.fit(x, y, verbose=0)
    backends.current().release()
    before = [np.array(weight) for weight in model.get_weights()]
    model.fit(x, y, verbose=0)
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))


def test_no_device_memory_without_a_gpu():
    if tf.config.get_visible_devices("GPU"):
        assert memory.device_memory().kind == "gpu"
    else:
        assert memory.device_memory() is None


def test_reserve_leaves_less_than_tensorflow_logs():
    logged = {15360: 13949, 6144: 4722, 40960: 38276}  # MiB of a T4, a GTX 1060, an A100
    for total, limit in logged.items():
        assert 0.9 * limit * MIB <= memory._less_reserve(total * MIB) <= limit * MIB


def test_backend_answers_the_protocol():
    backend = backends.current()
    backend.release()

    assert backend.name == "tensorflow"
    assert backend.is_out_of_memory(MemoryError())
    batch = spec_of(16, (8,))
    model = built(keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]), batch)
    assert backend.step_bytes(model, batch, None).upper > 0
