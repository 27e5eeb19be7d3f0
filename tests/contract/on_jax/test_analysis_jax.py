"""The analysis on JAX: what it predicts, that it changes nothing, and that a run need not compile again."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("JAX only", allow_module_level=True)

import jax

import memfit
from memfit import budgeting
from memfit.backends import keras_seam
from memfit.backends.on_jax import analysis, scratch, step
from memfit.errors import DoesNotFitError
from memfit.records import Split, TensorSpec
from memfit.units import MIB


def cnn(**compile_arguments: Any) -> Any:
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Dropout(0.2, seed=1), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((24, 24, 3)), *layers, keras.layers.Dense(4, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **compile_arguments)
    return model


def masked() -> Any:
    layers = [keras.layers.Embedding(9, 5, mask_zero=True), keras.layers.GRU(6, return_sequences=True)]
    model = keras.Sequential([keras.Input((7,), dtype="int32"), *layers, keras.layers.Dense(4, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def images(batch_size: int) -> tuple[Any, Any, Any]:
    return TensorSpec((batch_size, 24, 24, 3), "float32"), TensorSpec((batch_size,), "int64"), None


def built(model: Any, batch: Any) -> Any:
    keras_seam.symbolic_build(model, batch)
    return model


def state(model: Any) -> list[np.ndarray]:
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(variable.value) for variable in variables]


def test_larger_batches_take_more() -> None:
    model = built(cnn(), images(8))
    sizes = [analysis.step_bytes(model, images(batch), None).bytes for batch in (8, 16, 64, 256)]
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[1] > 20 * (sizes[1] - sizes[0])


def test_the_activations_and_both_copies_of_the_batch_count() -> None:
    estimate = analysis.step_bytes(built(cnn(), images(256)), images(256), None)
    batch = 256 * 24 * 24 * 3 * 4 + 256 * 4  # int64 labels become int32
    activation = 256 * 22 * 22 * 16 * 4
    assert 2 * batch + activation <= estimate.bytes - analysis.RUNTIME <= 2 * batch + 20 * activation
    assert estimate.source == "compiled"
    assert estimate.margin >= 16 * MIB


@pytest.mark.parametrize("weights", [0, 1])
def test_a_split_step_takes_less(weights: int) -> None:
    x, y, _ = images(256)
    batch = (x, y, TensorSpec((256,), "float32") if weights else None)
    model = built(cnn(), batch)
    whole = analysis.step_bytes(model, batch, None)
    parts = [analysis.step_bytes(model, batch, Split(size)).bytes for size in (64, 16)]
    assert whole.bytes > parts[0] > parts[1]


def test_the_gradient_sums_of_a_split_step_count() -> None:
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000, use_bias=False)])
    model.compile("sgd", "mse")
    batch = TensorSpec((8, 1000), "float32"), TensorSpec((8, 1000), "float32"), None
    assert analysis.step_bytes(built(model, batch), batch, Split(4)).bytes >= 1000 * 1000 * 4


def test_a_step_that_counts_masks_first_is_analysed() -> None:
    batch = TensorSpec((32, 7), "int32"), TensorSpec((32, 7), "int32"), None
    model = built(masked(), batch)
    assert analysis.step_bytes(model, batch, Split(8)).bytes > 0


@pytest.mark.parametrize("arguments", [{"jit_compile": False}, {"run_eagerly": True}])
def test_a_step_that_is_not_compiled_is_unknown(arguments: dict[str, bool]) -> None:
    assert analysis.step_bytes(built(cnn(**arguments), images(8)), images(8), None) is None


@pytest.mark.parametrize("split", [None, Split(4)])
def test_the_model_is_as_it_was(split: Split | None) -> None:
    model = built(cnn(), images(8))
    before, names = state(model), set(vars(model))
    analysis.step_bytes(model, images(8), split)
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.train_function is None
    assert set(vars(model)) - names <= {step._PREPARED}
    assert not model.losses


@pytest.mark.parametrize("split", [None, Split(4)])
def test_training_after_the_analysis_is_the_same(split: Split | None) -> None:
    x, y = np.random.default_rng(0).random((16, 24, 24, 3), "float32"), np.arange(16) % 4
    results = []
    for analysed in (False, True):
        keras.utils.set_random_seed(5)
        model = built(cnn(), images(8))
        if analysed:
            analysis.step_bytes(model, images(8), split)
        detach = step.attach(model, split)
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
        detach()
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def compilations() -> Any:
    """The names of what XLA compiles while the test runs."""
    events: list[str] = []

    def listen(event: str, _seconds: float, **_: Any) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("split", [None, Split(4)])
def test_the_run_finds_the_compiled_step(split: Split | None, compilations: list[str]) -> None:
    x, y = np.zeros((8, 24, 24, 3), "float32"), np.zeros((8,), "int32")
    counts = []
    for analysed in (False, True, True):  # the first also compiles what every run shares
        model = built(cnn(), images(8))
        if analysed:
            analysis.step_bytes(model, images(8), split)
            analysis.prepare(model, images(8), split)
        del compilations[:]
        detach = step.attach(model, split)
        model.fit(x, y, batch_size=8, verbose=0)
        detach()
        counts.append(len(compilations))
    assert counts[0] > counts[-1] == 0


def test_the_test_of_separability_compiles_the_gradient_of_the_whole_batch_once(compilations: list[str]) -> None:
    model = built(cnn(), images(5))
    batch = np.ones((5, 24, 24, 3), "float32"), np.ones((5,), "int64"), None
    with keras_seam.keeping_programs(model):
        step.gradients(model, batch, None)
        del compilations[:]
        step.gradients(model, batch, None)
        assert not compilations
    assert keras_seam.kept_programs(model) == {}


def test_a_step_is_not_kept_past_compile() -> None:
    model = built(cnn(), images(8))
    prepared = step.prepared(model, None)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert step._take_prepared(model, None) is None
    built(model, images(8))
    prepared = step.prepared(model, None)
    assert step._take_prepared(model, None) is prepared
    assert step._take_prepared(model, None) is None


def test_what_was_forgotten_while_the_model_was_tested_is_compiled_before_the_run(compilations: list[str]) -> None:
    model = built(cnn(), images(8))
    analysis.step_bytes(model, images(8), None)
    step.gradients(model, (np.ones((2, 24, 24, 3), "float32"), np.ones((2,), "int64"), None), None)
    assert not step.is_prepared(model, None)
    analysis.prepare(model, images(8), None)
    assert step.is_prepared(model, None)
    assert not step.is_prepared(model, Split(4))
    del compilations[:]
    analysis.prepare(model, images(8), None)
    assert not compilations


def test_what_compiling_takes_grows_with_the_program_and_is_refused() -> None:
    short, spec = built(cnn(), images(8)), images(8)
    long = keras.Sequential([keras.Input((24, 24, 3)), *[keras.layers.Dense(3, "tanh") for _ in range(20)]])
    long.add(keras.layers.Flatten())
    long.add(keras.layers.Dense(4, "softmax"))
    long.compile("adam", "sparse_categorical_crossentropy")
    assert (
        60 * MIB < analysis.compiling_bytes(short, spec) < analysis.compiling_bytes(built(long, spec), spec) < 600 * MIB
    )
    assert analysis.compiling_bytes(built(cnn(jit_compile=False), spec), spec) == 0
    x, y = np.ones((8, 24, 24, 3), "float32"), np.ones((8,), "int64")
    room = budgeting.reading().host_bytes + 60 * MIB
    with pytest.raises(DoesNotFitError, match="compiling its step takes about"):
        memfit.plan(long, x, y, batch_size=8, budget=room)


# What XLA's text says of a program that convolves 64 images of 150 x 150 x 3 with 32 filters.
PROGRAM = """
%fused_computation.1 (param_0.1: f32[64,150,150,3], param_1.1: f32[3,3,3,32]) -> f32[64,148,148,32] {
  %param_0.1 = f32[64,150,150,3]{3,2,1,0} parameter(0)
  %param_1.1 = f32[3,3,3,32]{3,2,1,0} parameter(1)
  ROOT %conv.1 = f32[64,148,148,32]{3,2,1,0} convolution(%param_0.1, %param_1.1), window={size=3x3ATTRIBUTES}, dim_labels=b01f_01io->b01fGROUPS
}

ENTRY %main.1 (x.1: f32[64,150,150,3], w.1: f32[3,3,3,32]) -> f32[64,148,148,32] {
  %x.1 = f32[64,150,150,3]{3,2,1,0} parameter(0)
  %w.1 = f32[3,3,3,32]{3,2,1,0} parameter(1)
  ROOT %ynn_fusion = f32[64,148,148,32]{3,2,1,0} fusion(%x.1, %w.1), kind=kCustom, calls=%fused_computation.1, backend_config={"fusion_config":{"kind":"__ynn_fusion"}}
}
"""  # noqa: E501
IMAGES = 64 * 150 * 150 * 3 * 4
WINDOWS = 64 * 148 * 148 * 9 * 3 * 4
FILTERS = 3 * 3 * 3 * 32 * 4
OUTPUT = 64 * 148 * 148 * 32 * 4


@pytest.mark.parametrize(
    ("attributes", "groups", "expected"),
    [
        ("", "", (WINDOWS, FILTERS)),  # every window is laid out
        (" pad=1_1x1_1", "", (IMAGES, FILTERS)),  # packed only
        (" pad=1_1x1_1", ", feature_group_count=3", (IMAGES, FILTERS)),  # one channel a group
        (" pad=2_2x2_2 lhs_dilate=2x2", "", (4 * IMAGES + OUTPUT, IMAGES + FILTERS)),  # written out with its zeros
    ],
)
def test_scratch_of_a_convolution(attributes: str, groups: str, expected: tuple[int, int]) -> None:
    found = scratch.of_program(PROGRAM.replace("ATTRIBUTES", attributes).replace("GROUPS", groups))
    assert (found.bytes, found.more) == expected


def test_a_convolution_outside_of_the_library_packs_nothing() -> None:
    found = scratch.of_program(PROGRAM.replace("__ynn_fusion", "loop").replace("ATTRIBUTES", "").replace("GROUPS", ""))
    assert found.bytes == 0


def test_scratch_of_a_product() -> None:
    lines = [
        "%fused (p.0: f32[512,4096], p.1: f32[512,1024]) -> f32[4096,1024] {",
        "  %p.0 = f32[512,4096]{1,0} parameter(0)",
        "  %p.1 = f32[512,1024]{1,0} parameter(1)",
        "  ROOT %dot.1 = f32[4096,1024]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={0}, rhs_contracting_dims={0}",
        "}",
        "ENTRY %main (a: f32[]) -> f32[] { ",
        '  ROOT %y = f32[4096,1024]{1,0} fusion(%a), calls=%fused, backend_config={"kind":"__ynn_fusion"}',
        "}",
    ]
    assert scratch.of_program("\n".join(lines)).bytes == 512 * 4096 * 4 + 512 * 1024 * 4
    assert (
        scratch.of_program("\n".join(lines).replace("lhs_contracting_dims={0}", "lhs_contracting_dims={1}")).bytes == 0
    )
