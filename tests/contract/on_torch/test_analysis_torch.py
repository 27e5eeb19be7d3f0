"""The analysis on PyTorch: what it predicts, what it cannot, and that it changes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch only", allow_module_level=True)

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as torch_module

from memfit import backends
from memfit.backends import host_allocator, keras_seam
from memfit.backends.on_torch import analysis, step, workspace
from memfit.backends.on_torch.c_heap import CHeap
from memfit.backends.on_torch.live_storages import Layout, LiveStorages, fake_mode
from memfit.backends.on_torch.whereabouts import Whereabouts
from memfit.backends.protocol import StepKind
from memfit.levers.pulled import pulled
from memfit.predicting import Predictions
from memfit.records import Levers, Moment, Split, TensorSpec
from memfit.units import MIB


class ReadsItsData(keras.layers.Layer):
    """Control flow on a number that only a real step knows."""

    def call(self, x: Any) -> Any:
        return x * 2 if float(keras.ops.sum(x)) > 0 else x


def cnn(*more: Any) -> Any:
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.BatchNormalization(), *more]
    layers += [keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")]
    model = keras.Sequential([keras.Input((24, 24, 3)), *layers])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def regularized() -> Any:
    layer = keras.layers.Dense(4, activation="softmax", activity_regularizer="l2", kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((24, 24, 3)), keras.layers.Flatten(), layer])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def wrapped_module() -> Any:
    module = torch.nn.Sequential(torch.nn.Linear(1728, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    layers = [keras.layers.Flatten(), keras.layers.TorchModuleWrapper(module), keras.layers.Softmax()]
    model = keras.Sequential([keras.Input((24, 24, 3)), *layers])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


MODELS = {
    "plain": cnn,
    "dropout": lambda: cnn(keras.layers.Dropout(0.2)),
    "seeded dropout": lambda: cnn(keras.layers.Dropout(0.2, seed=1)),
    "regularized": regularized,
    "torch module": wrapped_module,
}


def images(batch_size: int) -> tuple[Any, Any, Any]:
    return TensorSpec((batch_size, 24, 24, 3), "float32"), TensorSpec((batch_size,), "int64"), None


def built(model: Any, batch: Any) -> Any:
    keras_seam.symbolic_build(model, batch)
    return model


def tensors(model: Any) -> list[Any]:
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [variable.value for variable in variables] + [*model.parameters(), *model.buffers()]


def trained(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.fit(rng.random((8, 24, 24, 3), "float32"), np.arange(8) % 4, batch_size=8, verbose=0, shuffle=False)
    return model


def test_larger_batches_take_more() -> None:
    model = built(cnn(), images(8))
    sizes = [analysis.step_bytes(model, images(batch), None).bytes for batch in (8, 16, 64, 256)]
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[1] > 20 * (sizes[1] - sizes[0])


def test_a_linear_step_to_the_byte() -> None:
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000, use_bias=False)])
    model.compile("sgd", "mse")
    batch = TensorSpec((8, 1000), "float32"), TensorSpec((8, 1000), "float32"), None
    estimate = analysis.step_bytes(built(model, batch), batch, None)
    weights, rows = 1000 * 1000 * 4, 8 * 1000 * 4
    # The old gradient is gone before the new one, and SGD adds it in place; x, y and the prediction stay.
    counted = estimate.bytes - estimate.workspace - analysis.RUNTIME
    assert weights + 2 * rows <= counted <= weights + 8 * rows
    assert estimate.source == "fake tensors"
    assert 14 * MIB <= estimate.margin <= 14 * MIB + estimate.bytes // 4


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lion", "RMSprop", "Adagrad", "Adafactor"])
@pytest.mark.parametrize("schedule", [False, True], ids=["rate", "schedule"])
def test_every_optimizer_is_analysed(name: str, schedule: bool) -> None:
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9) if schedule else 0.1
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    model.compile(getattr(keras.optimizers, name)(rate), "mse")
    batch = TensorSpec((8, 10), "float32"), TensorSpec((8, 10), "float32"), None
    assert analysis.step_bytes(built(model, batch), batch, None) is not None
    assert "apply" not in vars(model.optimizer)


def test_a_step_with_loss_scaling_is_analysed() -> None:
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10, dtype="mixed_float16")])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    batch = TensorSpec((8, 10), "float32"), TensorSpec((8, 10), "float32"), None
    assert analysis.step_bytes(built(model, batch), batch, None) is not None


def test_a_split_step_takes_less() -> None:
    model = built(cnn(), images(256))
    whole = analysis.step_bytes(model, images(256), None)
    parts = [analysis.step_bytes(model, images(256), Split(size)).bytes - analysis.RUNTIME for size in (64, 16)]
    assert whole.bytes > 3 * parts[0]
    assert parts[0] > parts[1] > 256 * 24 * 24 * 3 * 4  # the whole batch is there in any case


def test_a_step_that_counts_masks_first_is_analysed() -> None:
    layers = [keras.layers.Embedding(9, 5, mask_zero=True), keras.layers.GRU(6, return_sequences=True)]
    model = keras.Sequential([keras.Input((7,), dtype="int32"), *layers, keras.layers.Dense(4, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    batch = TensorSpec((32, 7), "int32"), TensorSpec((32, 7), "int32"), None
    assert analysis.step_bytes(built(model, batch), batch, Split(8)).bytes > 0


def test_a_step_that_reads_its_data_is_unknown_and_the_model_unharmed() -> None:
    model = built(cnn(ReadsItsData()), images(8))
    before = [tensor.detach().clone() for tensor in tensors(model)]
    assert analysis.step_bytes(model, images(8), None) is None
    for a, b in zip(tensors(model), before, strict=True):
        assert torch.equal(a, b)
    trained(model)


@pytest.mark.parametrize(
    ("kind", "split"),
    [("train", None), ("train", Split(4)), ("test", None), ("predict", None)],
    ids=["plain", "split", "test", "predict"],
)
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_it_was(name: str, kind: StepKind, split: Split | None) -> None:
    model = trained(built(MODELS[name](), images(8)))
    before = [(tensor, tensor.detach().clone(), tensor.grad) for tensor in tensors(model)]
    modes = [module.training for module in model.modules()]
    losses, function, names = list(map(id, model.losses)), model.train_function, set(vars(model))
    random = torch.get_rng_state(), np.random.get_state()[1].copy()

    assert analysis.step_bytes(model, images(8), split, kind).bytes > 0

    for tensor, (same, value, grad) in zip(tensors(model), before, strict=True):
        assert tensor is same
        assert torch.equal(tensor, value)
        assert tensor.grad is grad
    assert modes == [module.training for module in model.modules()]
    assert model.train_function is function
    assert set(vars(model)) == names
    assert [id(loss) for loss in model.losses][: len(losses) - 1] == losses[: len(losses) - 1]
    assert torch.is_grad_enabled()
    assert (len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)) == (0, 0)
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.array_equal(np.random.get_state()[1], random[1])


def test_testing_and_predicting_take_less_than_training() -> None:
    model = built(cnn(), images(64))
    train, test, predict = (
        analysis.step_bytes(model, images(64), None, kind).bytes - analysis.RUNTIME
        for kind in ("train", "test", "predict")
    )
    assert train > 1.5 * test
    assert test >= predict


def dense_stack() -> Any:
    layers = [keras.layers.Dense(1000, use_bias=False) for _ in range(4)]
    return keras.Sequential([keras.Input((1000,)), *layers])


def test_a_prediction_to_the_byte() -> None:
    model = dense_stack()
    model.compile("sgd", "mse")
    batch = TensorSpec((500, 1000), "float32"), None, None
    estimate = analysis.step_bytes(model, batch, None, "predict")
    rows = 500 * 1000 * 4
    # Keras keeps the input and every layer's output until the model's call returns.
    assert estimate.bytes - analysis.RUNTIME - estimate.workspace == 5 * rows
    assert estimate.moment == Moment("forward", model.layers[-1].path, "aten.mm")


def test_targets_do_not_count_in_a_prediction() -> None:
    model = built(cnn(), images(64))
    without = images(64)[0], None, None
    assert analysis.step_bytes(model, images(64), None, "predict") == analysis.step_bytes(
        model, without, None, "predict"
    )


def test_a_model_that_was_not_compiled_predicts() -> None:
    batch = TensorSpec((500, 1000), "float32"), None, None
    assert analysis.step_bytes(dense_stack(), batch, None, "predict").bytes > 0


def test_evaluation_mode_is_what_a_validation_step_runs_in() -> None:
    model = built(wrapped_module(), images(8))
    seen = []
    module = model.layers[1].module
    hook = module.register_forward_hook(lambda *_: seen.append((module.training, torch.is_grad_enabled())))
    for kind in ("train", "test", "predict"):
        analysis.step_bytes(model, images(8), None, kind)
    hook.remove()
    assert seen == [(True, True), (False, False), (False, False)]


def test_the_peak_of_a_cnn_is_in_its_backward_pass() -> None:
    model = built(cnn(), images(256))
    moment = analysis.step_bytes(model, images(256), None).moment
    assert moment.phase == "backward"
    assert moment.layer in {layer.path or layer.name for layer in model.layers}
    assert analysis.step_bytes(model, images(256), None, "test").moment.phase == "forward"


def test_the_peak_of_an_update() -> None:
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000, use_bias=False)])
    model.compile("adam", "mse")
    batch = TensorSpec((1, 1000), "float32"), TensorSpec((1, 1000), "float32"), None
    moment = analysis.step_bytes(built(model, batch), batch, None).moment
    assert (moment.phase, moment.layer) == ("update", None)


def nested() -> Any:
    inside = keras.Sequential([keras.Input((24, 24, 3)), keras.layers.Conv2D(64, 3, name="wide")], name="inside")
    inputs = keras.Input((24, 24, 3))
    hidden = keras.layers.GlobalAveragePooling2D(name="narrow")(inside(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(hidden), name="outside")
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("split", [None, Split(128)], ids=["plain", "split"])
def test_the_layer_of_a_nested_model_is_named(split: Split | None) -> None:
    model = built(nested(), images(256))
    estimate = analysis.step_bytes(model, images(256), split)
    assert estimate.moment.phase in ("forward", "backward")
    assert estimate.moment.layer in (model.layers[1].layers[0].path, model.layers[2].name)
    test = analysis.step_bytes(model, images(256), None, "test").moment
    assert test == Moment("forward", model.layers[1].layers[0].path, test.operation)


def test_a_node_of_the_backward_pass_belongs_to_the_layer_that_made_it() -> None:
    a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")
    x = keras.ops.ones((2, 3))
    b(a(x))  # builds them
    with Whereabouts() as where:
        seen = []
        outputs = b(a(x))
        for tensor in (outputs, outputs * 2):
            tensor.register_hook(lambda _: seen.append(where.moment(torch.ops.aten.add.Tensor)))
        assert where.moment(torch.ops.aten.mul.Tensor) == Moment("forward", None, "aten.mul")
        (outputs * 2).sum().backward()
        assert {moment.phase for moment in seen} == {"backward"}
        with where.updating():
            assert where.moment(torch.ops.aten.mul.Tensor) == Moment("update", None, "aten.mul")
        assert where._maker(outputs.grad_fn) == b.path
        assert where._maker((outputs * 2).grad_fn) is None
        assert where._maker(a(x).grad_fn) == a.path


@pytest.mark.parametrize("split", [None, Split(4)], ids=["plain", "split"])
def test_training_after_the_analysis_is_the_same(split: Split | None) -> None:
    results = []
    for analysed in (False, True):
        keras.utils.set_random_seed(5)
        model = built(MODELS["seeded dropout"](), images(8))
        if analysed:
            analysis.step_bytes(model, images(8), split)
        detach = step.attach(model, split)
        trained(model)
        detach()
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_storages_are_counted_once_and_until_they_end() -> None:
    layout = Layout()
    with fake_mode(), LiveStorages(workspace.for_device("cpu"), layouts=[layout]) as live:
        a = torch.empty(1000)
        view = a.view(10, 100).t()
        assert live.live == 4000
        b = a + a
        assert (live.live, layout.peak) == (8000, 8000)
        b.add_(1)
        assert live.live == 8000
        del a, b
        assert live.live == 4000  # the view still holds its storage
        del view
        assert (live.live, layout.peak) == (0, 8000)


def test_small_blocks_leave_gaps_that_end_with_the_heap_s_top() -> None:
    heap = CHeap()
    tensors = [heap.take(10_000) for _ in range(10)]
    full = heap.top
    assert 10 * 10_000 < full < 10 * 12_000
    for blocks in tensors[:-1]:
        heap.give(blocks)
    assert heap.top == full  # the last one holds it
    heap.take(20_000)
    assert heap.top == full  # the gaps joined
    heap.give(tensors[-1])
    assert heap.top < full


def test_a_tensor_does_not_fit_where_its_like_has_been() -> None:
    heap = CHeap()
    tensors = [heap.take(10_000) for _ in range(3)]
    top = heap.top
    heap._free(*tensors[0][0])
    heap.take(10_000)
    assert heap.top > top


def test_pages_of_their_own_take_less_and_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    thresholds = []
    monkeypatch.setattr(
        host_allocator,
        "map_large_blocks",
        lambda least, *, close_gaps: thresholds.append((least, close_gaps)) or (lambda: None),
    )
    layers = [keras.layers.Dense(512, activation="gelu") for _ in range(6)]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    spec = (TensorSpec((2048, 64), "float32"), TensorSpec((2048, 1), "float32"), None)
    backend = backends.current()
    found, trained, weights = {}, [], model.get_weights()
    for own in (False, True):
        model.set_weights(weights)
        with pulled(model, Levers(own_pages=own), backend):
            found[own] = analysis.step_bytes(model, spec, None)
            detach = backend.attach(model, None)
            model.fit(np.ones((2048, 64), "float32"), np.ones((2048, 1), "float32"), batch_size=2048, verbose=0)
            detach()
        trained.append(model.get_weights())
    assert found[True].upper < found[False].upper
    assert found[True] == dataclasses.replace(found[False].otherwise, otherwise=found[True].otherwise), (
        "one run tells both"
    )
    assert found[False].upper == found[True].otherwise.upper
    assert thresholds == [(host_allocator.LARGEST_HEAP_BLOCK, False), (host_allocator.LARGE_BLOCK, True)]
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not keras_seam.has_own_pages(model)


def test_one_run_predicts_tensors_on_the_heap_and_in_pages_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, analysed = [], analysis.step_bytes
    monkeypatch.setattr(analysis, "step_bytes", lambda *given: asked.append(given) or analysed(*given))
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512, activation="gelu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    spec = (TensorSpec((2048, 64), "float32"), TensorSpec((2048, 1), "float32"), None)
    prediction = Predictions(model, spec, backends.current(), quiet=True)
    heap, own = (prediction.peak(None, Levers(own_pages=pages)) for pages in (False, True))
    assert own.upper < heap.upper
    assert len(asked) == 1
    assert heap.otherwise is None, "a peak is that of one plan"


def test_gaps_count_as_workspace_and_large_blocks_leave_none() -> None:
    layout = Layout(CHeap(), mapped_block=MIB)
    with fake_mode(), LiveStorages(workspace.for_device("cpu"), layouts=[layout]) as live:
        large = torch.empty(MIB)
        assert (layout.peak, layout.workspace, layout.heap_peak) == (4 * MIB, 0, 0)
        small = [torch.empty(1000) for _ in range(10)]
        assert live.live == 4 * MIB + 40_000
        assert layout.peak == live.live + layout.workspace
        assert layout.heap_peak == 40_000 + layout.workspace
        reached = layout.heap_peak
        del large, small
        assert live.live == 0
        torch.empty(1000)
        assert layout.heap_peak == reached


def test_what_is_held_between_steps_does_not_count() -> None:
    with fake_mode():
        held = torch.empty(1000)
        layout = Layout()
        with LiveStorages(workspace.for_device("cpu"), layouts=[layout]) as live:
            live.ignore(held)
            held.mul_(2)
            assert layout.peak == 0
            held + 1
        assert layout.peak == 4000


@pytest.mark.parametrize(("layout", "copies"), [(torch.contiguous_format, 0), (torch.channels_last, 1)])
def test_pooling_backwards_copies_what_lies_in_another_order(layout: Any, copies: int) -> None:
    with fake_mode():
        x = torch.empty(2, 8, 16, 16)
        y, indices = torch.nn.functional.max_pool2d_with_indices(x, 2)
        gradient = torch.empty_like(y, memory_format=layout)
        arguments = (gradient, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
        operator = torch.ops.aten.max_pool2d_with_indices_backward.default
        result = operator(*arguments)
        assert workspace.for_device("cpu")(operator, arguments, result) == copies * (x.nbytes + indices.nbytes)
        assert workspace.for_device("cuda")(operator, arguments, result) == 0


def test_what_pytorch_learned_of_fake_tensors_goes_with_the_analysis() -> None:
    batch = TensorSpec((8, 16), "float32"), TensorSpec((8, 4), "float32"), None
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse", jit_compile=False)
    keras_seam.symbolic_build(model, batch)

    assert analysis.step_bytes(model, batch, None) is not None

    assert FakeTensorMode.cache_info().size == 0
