"""One test for each private name of Keras that ``keras_seam`` uses: a failure says which Keras changed it."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.trainers.data_adapters import py_dataset_adapter

from memfit.backends import (
    keras_data,
    keras_graph,
    keras_losses,
    keras_optimizer,
    keras_order,
    keras_saving,
    keras_seam,
)
from memfit.records import TensorSpec


@pytest.fixture(autouse=True)
def _says_the_version(record_property: Any) -> None:
    record_property("keras", keras.__version__)


def built() -> Any:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer="l2")])
    model.compile("adam", "mse", metrics=["mae"])
    keras_seam.symbolic_build(model, (TensorSpec((4, 3), "float32"), TensorSpec((4, 2), "float32"), None))
    return model


def gone(name: str) -> str:
    return f"Keras {keras.__version__} changed {name}; mend keras_seam"


@pytest.mark.parametrize(
    "name",
    [
        "_call_has_training_arg",
        "_compute_loss",
        "_symbolic_build",
        "_compile_loss",
        "_compile_metrics",
        "_compile_config",
        "_loss_tracker",
        "_losses_override",
        "_jit_compile",
        "_flatten_layers",
    ],
)
def test_the_model_has(name: str) -> None:
    assert hasattr(built(), name), gone(f"Model.{name}")


def test_steps_are_made_without_a_compiler_for_a_while() -> None:
    model = built()
    model.compile("sgd", "mse", jit_compile=True)
    with keras_seam.without_jit(model):
        assert not model.jit_compile, gone("Trainer._jit_compile")
        assert not keras_seam.is_jitted(model)
    assert model.jit_compile is True, gone("Trainer._jit_compile")
    assert keras_seam.is_jitted(model)


def test_the_compiled_loss_keeps_named_entries_and_metrics() -> None:
    compiled = built()._compile_loss
    (entry,) = compiled._flat_losses
    assert entry._fields[1] == "loss", gone("CompileLoss._flat_losses")
    assert isinstance(compiled._metrics, list), gone("CompileLoss._metrics")
    assert compiled.built, gone("CompileLoss.built")


def test_fit_accepts_a_data_adapter() -> None:
    adapter = keras_data.array_order(4, batch_size=2, steps=None, shuffle=False)
    assert isinstance(adapter, keras_data.DataAdapter), gone("trainers.data_adapters")
    assert [list(np.asarray(b)) for b in adapter.get_numpy_iterator()] == [[0, 1], [2, 3]], gone("ArrayDataAdapter")


def test_the_number_of_batches_is_what_fit_tells_its_callbacks() -> None:
    x, y = np.ones((10, 3), "float32"), np.ones((10, 2), "float32")
    seen: list[int] = []

    class Told(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            seen.append(self.params["steps"])

    for arguments in ({"batch_size": 4}, {"batch_size": 4, "validation_split": 0.3}, {"steps_per_epoch": 2}):
        built().fit(x, y, verbose=0, callbacks=[Told()], **arguments)
        found = keras_data.num_batches({"x": x, "y": y, **arguments})
        assert found == seen[-1], gone("trainers.data_adapters.get_data_adapter")


def test_the_queue_of_a_dataset_keeps_what_was_made_and_not_asked_for() -> None:
    class Numbers(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return np.full((1, 1), index, "float32"), np.zeros((1, 1), "float32")

    def order(adapter: Any) -> list[int]:
        adapter.on_epoch_begin()
        iterator = iter(adapter.get_numpy_iterator())
        next(iterator)
        time.sleep(0.2)
        adapter.on_epoch_end()
        adapter.on_epoch_begin()
        found = [int(x[0, 0]) for x, _ in adapter.get_numpy_iterator()]
        adapter.on_epoch_end()
        return found

    data = Numbers(workers=2)
    plain = py_dataset_adapter.PyDatasetAdapter(data)
    assert order(plain) == [1, 2, 3, 0], gone("OrderedEnqueuer.stop, which keeps batches for the next epoch")
    ours = keras_order.QueuedDataset(data, workers=2, waiting=1, class_weight=None, shuffle=False)
    assert order(ours) == [1, 2, 3, 0], gone("OrderedEnqueuer (indices, get, stop, is_running)")
    assert ours.enqueuer.ready_queue.empty(), gone("OrderedEnqueuer.ready_queue")
    assert ours.enqueuer.future_queue.maxsize == 1, gone("OrderedEnqueuer.future_queue")


def test_fit_builds_through_the_method_on_the_model_with_its_iterator() -> None:
    model, seen = built(), []
    draws = not hasattr(model, "_maybe_symbolic_build")
    keras_seam.set_attribute(
        model, "_symbolic_build", lambda iterator=None, data_batch=None: seen.append((iterator, data_batch))
    )
    model.fit(np.zeros((2, 3), "float32"), np.zeros((2, 2), "float32"), verbose=0)
    keras_seam.remove_attribute(model, "_symbolic_build")
    assert bool(seen) == draws, gone("Trainer._symbolic_build or Trainer._maybe_symbolic_build")
    assert all(iterator is not None and data_batch is None for iterator, data_batch in seen)


def test_the_global_seed_generator_is_found() -> None:
    keras.random.uniform((1,))
    found = keras_saving.global_seed_generator()
    assert found is keras_saving.global_seed_generator(create=True), gone("random.seed_generator.global_seed_generator")
    assert tuple(found.state.shape) == (2,), gone("SeedGenerator.state")


def test_jax_trainers_make_a_function_of_state_and_data() -> None:
    if keras.backend.backend() != "jax":
        pytest.skip("the JAX trainer's own")
    step = keras_seam.steps_on_iterator(built(), lambda state, data: (data, state))
    assert step(1, iter(["batch"])) == ("batch", 1), gone("JAXTrainer._make_function")


def test_an_instance_train_step_is_used_by_the_train_function() -> None:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the TensorFlow backend's way to attach")
    model = built()
    keras_seam.set_attribute(model, "train_step", lambda data: {"mine": keras.ops.ones(())})
    model.make_train_function(force=True)
    assert "mine" in model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0).history, gone("Trainer.make_train_function")


def test_overrides_tells_the_users_methods_from_keras() -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return {}

    assert keras_seam.overrides(Own(), "train_step")
    assert not keras_seam.overrides(keras.Sequential(), "train_step")
    assert not keras_seam.overrides(keras.Sequential(), "compute_loss")


def test_losses_can_be_overridden_and_come_back() -> None:
    model = built()
    with keras_losses.overridden_losses(model, ["mine"]):
        assert model.losses == ["mine"], gone("Layer._losses_override")
    assert len(model.losses) == 1
    assert keras_losses.num_weight_losses(model) == 1


def test_masks_travel_with_tensors() -> None:
    outputs = keras.layers.Embedding(3, 2, mask_zero=True)(np.array([[1, 0]]))
    assert keras_losses.mask_of(outputs) is not None, gone("get_keras_mask")
    weight = keras_losses.weight_of_entries(None, keras_losses.mask_of(outputs), dtype="float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), [[1.0, 0.0]])


def test_seeds_are_found_by_name_and_state_is_kept() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    (seed,) = [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
    before = np.array(seed)
    with keras_seam.preserved_state(model):
        keras_seam.advance_seeds(model)
        assert not np.array_equal(before, np.array(seed)), gone("SeedGenerator.state")
    np.testing.assert_array_equal(before, np.array(seed))
    with keras_seam.without_dropout(model):
        assert model.layers[0].rate == 0
    assert model.layers[0].rate == 0.5


@pytest.mark.parametrize("kind", ["attention", "lstm", "gru"])
def test_dropout_is_switched_off_in_attention_and_cells(kind: str) -> None:
    inputs = keras.Input((4, 6))
    if kind == "attention":
        layer = keras.layers.MultiHeadAttention(2, 3, dropout=0.5)
        outputs = layer(inputs, inputs)
    else:
        layer = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind](3, dropout=0.5, recurrent_dropout=0.5)
        outputs = layer(inputs)
    model = keras.Model(inputs, outputs)
    x = np.ones((2, 4, 6), "float32")

    def called() -> Any:
        return keras.ops.convert_to_numpy(model(x, training=True))

    with keras_seam.without_dropout(model):
        assert np.array_equal(called(), called()), gone(f"{type(layer).__name__}.dropout")
    assert layer.dropout == 0.5
    assert not np.array_equal(called(), called())


def test_symbolic_outputs_computes_shapes_of_every_layer() -> None:
    calls = keras_seam.symbolic_outputs(built(), TensorSpec((2, 3), "float32"))
    assert [(type(layer).__name__, shapes) for layer, shapes in calls if type(layer).__name__ == "Dense"] == [
        ("Dense", [(2, 2)])
    ], gone("Layer.__call__ or compute_output_spec")


def test_own_objects_are_the_users_alone() -> None:
    class Mine(keras.layers.Layer):
        pass

    def loss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(y_pred - y_true, axis=-1)

    model = keras.Sequential([keras.Input((3,)), Mine()])
    model.compile("adam", loss)
    assert set(keras_seam.own_objects(model).values()) == {Mine, loss}, gone("Trainer._compile_config")


@pytest.mark.parametrize(
    "name",
    [
        "_get_variable_index",
        "_trainable_variables",
        "_momentums",
        "_velocities",
        "_iterations",
        "_learning_rate",
        "_untrack_variable",
        "_model_variables_moving_average",
        "_accumulated_gradients",
    ],
)
def test_an_adam_has(name: str) -> None:
    adam = keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)
    adam.build(built().trainable_variables)
    assert hasattr(adam, name), gone(f"Adam.{name}")


def test_an_update_is_one_call_with_gradients_variables_and_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where all weights are updated at once, that call hands them to ``_parallel_update_step``."""
    adam, variables, seen = keras.optimizers.Adam(), built().trainable_variables, []
    adam.build(variables)
    at_once = hasattr(adam, "_parallel_update_step")
    assert at_once == keras_optimizer.updates_all_at_once(adam)
    assert at_once == (keras.backend.backend() == "torch"), gone("TorchParallelOptimizer")
    name = "_parallel_update_step" if at_once else "_backend_update_step"
    monkeypatch.setattr(adam, name, lambda *arguments: seen.append(arguments))
    adam.apply([keras.ops.ones(variable.shape) for variable in variables], variables)
    ((gradients, updated, _),) = seen
    assert len(gradients) == len(updated) == len(variables), gone(f"Adam.{name}")


def test_excluded_weights_are_kept_as_a_set_and_a_pattern() -> None:
    adam, other = keras.optimizers.AdamW(), keras.optimizers.AdamW()
    adam.exclude_from_weight_decay(var_names=["bias"])
    keras_optimizer.share_progress(adam, other)
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        assert getattr(other, name) is getattr(adam, name), gone(f"BaseOptimizer.{name}")
    other.build(built().trainable_variables)
    assert [v for v in other.variables if v is adam.iterations or v is adam.learning_rate] == other.variables[:2]


def test_another_optimizer_goes_inside_a_loss_scale_optimizer() -> None:
    model, other = built(), keras.optimizers.SGD()
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    outer, inner, marks = model.optimizer, model.optimizer.inner_optimizer, keras_seam.compile_marks(model)
    with keras_optimizer.replaced_optimizer(model, other):
        assert model.optimizer is outer
        assert outer.inner_optimizer is other, gone("LossScaleOptimizer.inner_optimizer")
        assert any(a is not b for a, b in zip(marks, keras_seam.compile_marks(model), strict=True))
    assert outer.inner_optimizer is inner


def graph_model() -> Any:
    inputs = keras.Input((3,))
    nested = keras.Sequential([keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    return keras.Model(inputs, keras.layers.Add()([nested(inputs), keras.layers.Dense(2)(inputs)]))


@pytest.mark.parametrize("name", ["_inputs_struct", "_outputs_struct", "_nodes_by_depth", "_layers"])
def test_a_functional_model_has(name: str) -> None:
    assert hasattr(graph_model(), name), gone(f"Functional.{name}")


def test_a_graph_is_flattened_and_runs() -> None:
    model = graph_model()
    graph = keras_graph.flattened(keras_graph.graph_of(model))
    names = [type(operation.called).__name__ for operation in graph.operations]
    assert sorted(names) == ["Add", "Dense", "Dense", "Dropout", "Functional"], gone("Functional.run_through_graph")
    x = keras.ops.ones((4, 3))
    values = dict(zip(graph.inputs, graph.entered(x, None), strict=True))
    for operation in graph.operations:
        values.update(zip(operation.writes, operation.run(values, training=False), strict=True))
    result = graph.left([values[number] for number in graph.outputs])
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (result, model(x))), rtol=1e-6)


def test_a_stateless_scope_tells_what_was_touched() -> None:
    first, second = keras.Variable(np.ones(2)), keras.Variable(np.ones(2))
    with keras_graph.Watched([first], keras_graph.values_of([first])) as scope:
        first.assign(second + 1)
    assert list(scope.changed.values()) == [first], gone("StatelessScope.add_update")
    assert list(scope.unknown.values()) == [second], gone("StatelessScope.get_current_value")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(first.value), [1, 1])


def test_losses_of_a_stateless_scope_have_owners() -> None:
    layer = keras.layers.Dense(2, activity_regularizer="l2")
    layer(keras.ops.ones((1, 2)))
    with keras_graph.Watched(layer.variables, keras_graph.values_of(layer.variables)) as scope:
        layer(keras.ops.ones((1, 2)))
        assert [owner for owner, _ in scope.take_losses([layer])] == [layer], gone("Layer._loss_ids")
    assert not layer._loss_ids


def test_surroundings_come_back() -> None:
    seen = []

    class Asks(keras.layers.Layer):
        def call(self, x: Any, training: bool = False) -> Any:
            seen.append((keras_graph.training_in_context(), keras_graph.Surroundings()))
            return x

    Asks()(keras.ops.ones((1, 2)), training=True)
    assert keras_graph.training_in_context() is None
    with seen[0][1].restored():
        assert keras_graph.training_in_context() is seen[0][0] is True, gone("current_call_ctx")
    assert not keras_graph.in_symbolic_scope()


def test_layers_know_their_remat_scope() -> None:
    with keras.RematScope():
        layer = keras.layers.Dense(1)
    assert keras_graph.is_rematerialized(layer), gone("Layer._remat_mode")
    assert not keras_graph.is_rematerialized(keras.layers.Dense(1))


def test_symbolic_calls_know_what_they_lie_in() -> None:
    model = graph_model()
    calls = keras_graph.symbolic_calls(lambda x: model(x), TensorSpec((2, 3), "float32"))
    assert [call.layer for call in calls if not call.inside] == [model], gone("Layer.__call__")


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow is there anyway")
def test_describing_and_predicting_a_model_does_not_import_tensorflow() -> None:
    """Keras' ``module_utils.tensorflow`` would import it, to ask whether an object is TensorFlow's."""
    code = (
        "import sys, keras, memfit\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])\n"
        "model.compile('sgd', 'mse')\n"
        "memfit.profile(model, batch_size=8)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_loops_call_what_stands_on_the_model_and_jax_state_can_be_synced() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    for kind in ("train", "test", "predict"):
        assert hasattr(model, f"{kind}_function"), gone(f"Trainer.{kind}_function")
        assert callable(getattr(model, f"make_{kind}_function")), gone(f"Trainer.make_{kind}_function")
    assert hasattr(model, "jax_state_sync") == (keras.backend.backend() == "jax"), gone("JAXTrainer.jax_state_sync")
    assert keras_seam.raw_value(model.variables[0]) is not None, gone("Variable._value")
    assert keras_seam.has_weights(model), gone("Layer._flatten_layers")


def test_outputs_of_a_prediction_are_known_from_shapes() -> None:
    model = keras.Model(x := keras.Input((3,)), {"a": keras.layers.Dense(2)(x), "b": x})
    assert keras_seam.output_specs(model, TensorSpec((5, 3), "float32")) == [((5, 2), "float32"), ((5, 3), "float32")]
