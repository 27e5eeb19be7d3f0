"""The only file that touches Keras' private parts, beside ``keras_graph`` for the graph of a model.

Each name used here has a test in ``tests/contract/test_keras_seam.py`` that says which Keras version changed it. Works with
Keras 3.10 to 3.15. What differs by framework is in ``on_tensorflow``, ``on_jax`` and ``on_torch``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras.src import backend as keras_backend
from keras.src.losses import loss as keras_loss
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import array_data_adapter, data_adapter, data_adapter_utils


def framework() -> str:
    """The name of the framework that this process' Keras runs on."""
    return str(keras.backend.backend())


def flatten(structure: Any) -> list[Any]:
    """The leaves of a nested structure that are not None."""
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """The structure with the function applied to each leaf; None stays None."""
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


def rows(structure: Any, which: slice) -> Any:
    """The structure with some samples of each leaf."""
    return map_leaves(lambda leaf: leaf[which], structure)


# The train step


@contextlib.contextmanager
def replaced_values(variables: list[Any], values: list[Any]) -> Iterator[None]:
    """Inside, each variable holds the given tensor instead of its own, which nothing touches."""
    kept = [variable._value for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable._value = value
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable._value = value


def sync_state(model: Any) -> None:
    """Inside a callback: gives the variables their present values, which Keras' JAX loop holds elsewhere meanwhile."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def raw_value(variable: Any) -> Any | None:
    """The tensor that a variable holds; None where Keras' JAX loops have taken it out."""
    return variable._value


def overrides(model: Any, method: str) -> bool:
    """Whether the user's class, not Keras, defines a method of the model."""
    owner = next(cls for cls in type(model).__mro__ if method in vars(cls))
    return method in vars(model) or not owner.__module__.startswith("keras.src.")


def forward(model: Any, x: Any, *, training: bool) -> Any:
    """The model's outputs, with ``training`` passed where its call takes it."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def forward_arguments(model: Any, *, training: bool) -> dict[str, bool]:
    """The keyword arguments of ``stateless_call`` that say whether the model trains."""
    return {"training": training} if model._call_has_training_arg else {}


def compute_loss(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """The model's training loss, through the user's ``compute_loss`` where there is one."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def compile_marks(model: Any) -> tuple[Any, ...]:
    """What ``compile`` replaces: a step traced for the model holds while each of these is the very same object."""
    own = own_optimizer(model)
    inner = getattr(own, "inner_optimizer", None)  # a LossScaleOptimizer's
    return (model._compile_loss, model._compile_metrics, own, inner, model.jit_compile, model.run_eagerly)


def steps_on_iterator(model: Any, step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """JAX: a train function for the epoch loop around ``step(state, data)``, with ``steps_per_execution``."""
    return model._make_function(step)


def set_attribute(model: Any, name: str, value: Any) -> None:
    """Sets a plain Python attribute past the tracking of Keras and the framework."""
    object.__setattr__(model, name, value)


def remove_attribute(model: Any, name: str) -> None:
    """Removes what ``set_attribute`` set, so that the class' own shows again."""
    object.__delattr__(model, name)


_REMAT = "_memfit_remat"


def remat_of(model: Any) -> Any | None:
    """The ``records.Remat`` that is on the model now, or None."""
    return vars(model).get(_REMAT)


@contextlib.contextmanager
def marked_with(model: Any, remat: Any) -> Iterator[None]:
    """Inside, ``remat_of`` tells the rematerialization."""
    previous = remat_of(model)
    set_attribute(model, _REMAT, remat)
    try:
        yield
    finally:
        if previous is None:
            remove_attribute(model, _REMAT)
        else:
            set_attribute(model, _REMAT, previous)


_PRECISION = "_memfit_precision"


def precision_of(model: Any) -> str | None:
    """The precision that the lever put on the model, as ``records.Levers`` names it, or None."""
    return vars(model).get(_PRECISION, (None, None))[0]


def own_optimizer(model: Any) -> Any:
    """The optimizer that the user compiled with, also where the precision lever scales the loss around it."""
    marks = vars(model).get(_PRECISION)
    return model.optimizer if marks is None else marks[1]


@contextlib.contextmanager
def marked_with_precision(model: Any, precision: str) -> Iterator[None]:
    """Inside, ``precision_of`` and ``own_optimizer`` tell the precision and the present optimizer."""
    set_attribute(model, _PRECISION, (precision, model.optimizer))
    try:
        yield
    finally:
        remove_attribute(model, _PRECISION)


def is_distributed(model: Any) -> bool:
    """Whether the model trains on several devices: ``keras.distribution``, a TensorFlow strategy, or torch's DDP."""
    if keras.distribution.distribution() is not None or getattr(model, "ddp_model", None) is not None:
        return True
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy is not None and strategy.num_replicas_in_sync > 1


def symbolic_build(model: Any, batch: Any) -> None:
    """Creates weights, metrics, losses and optimizer slots from the shapes of a batch, as ``fit`` would.

    Args:
        model: A compiled model.
        batch: ``(x, y, sample_weight)`` of anything with ``shape`` and ``dtype``.
    """
    model._symbolic_build(data_batch=data_adapter_utils.pack_x_y_sample_weight(*batch))


def own_objects(model: Any) -> dict[str, Any]:
    """The classes and functions of the user's own that loading the saved model needs, by the names it is saved with."""
    found = [type(layer) for layer in [model, *flat_layers(model)]]
    losses, metrics = model._compile_config.config.get("loss"), model._compile_config.config.get("metrics")
    found += [
        leaf if callable(leaf) and hasattr(leaf, "__name__") else type(leaf)
        for leaf in keras.tree.flatten([losses, metrics, own_optimizer(model)])
        if leaf is not None and not isinstance(leaf, str)
    ]
    own = [one for one in found if not getattr(one, "__module__", "").startswith("keras.src.")]
    return {keras.saving.get_registered_name(one): one for one in own} | {one.__name__: one for one in own}


def is_built(model: Any) -> bool:
    """Whether model, metrics, loss and optimizer have all their variables."""
    parts = [model._compile_metrics, model._compile_loss, model.optimizer]
    return all(layer.built for layer in model._flatten_layers()) and all(p is None or p.built for p in parts)


def optimizer_variables(model: Any) -> list[Any]:
    """The variables of the model's optimizer; none before ``compile``."""
    optimizer = getattr(model, "optimizer", None)
    return [] if optimizer is None else list(optimizer.variables)


def flat_layers(model: Any) -> list[Any]:
    """Every layer of the model, nested ones included, the model itself not."""
    return list(model._flatten_layers(include_self=False))


def dtype_name(variable: Any) -> str:
    """The dtype of a variable or tensor as Keras writes it."""
    return str(keras.backend.standardize_dtype(variable.dtype))


def symbolic_outputs(model: Any, x: Any) -> list[tuple[Any, list[tuple[int, ...]]]]:
    """Every call of a layer inside the model's forward pass with the shapes that it keeps, in order; computes nothing.

    Args:
        model: A Keras model.
        x: Nested structure of anything with ``shape`` and ``dtype``.

    Raises:
        ValueError: The inputs do not fit the model.
    """
    calls: list[tuple[Any, list[tuple[int, ...]]]] = []
    known = set(map(id, flat_layers(model)))
    original = keras.layers.Layer.__call__

    def recording(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = original(layer, *args, **kwargs)
        if id(layer) in known or not model.built:
            shapes = [tuple(leaf.shape) for leaf in flatten(outputs) if hasattr(leaf, "shape")]
            if isinstance(layer, keras.layers.RNN) and args and len(args[0].shape) == 3:
                # Gates, states and their products of every time step stay for the backward pass.
                shapes += [(*args[0].shape[:2], 12 * int(np.sum(layer.state_size)))]
            calls.append((layer, shapes))
        return outputs

    inputs = map_leaves(lambda spec: keras.KerasTensor(spec.shape, spec.dtype), x)
    keras.layers.Layer.__call__ = recording
    try:
        keras_backend.compute_output_spec(lambda inputs: forward(model, inputs, training=True), inputs)
    finally:
        keras.layers.Layer.__call__ = original
    return [(layer, [s for s in shapes if None not in s]) for layer, shapes in calls]


def output_specs(model: Any, x: Any) -> list[tuple[tuple[int, ...], str]] | None:
    """Shape and dtype of each output of a prediction; computes nothing. None where shapes do not tell.

    Args:
        model: A built model.
        x: Nested structure of anything with ``shape`` and ``dtype``.
    """
    inputs = map_leaves(lambda spec: keras.KerasTensor(spec.shape, spec.dtype), x)
    try:
        outputs = keras_backend.compute_output_spec(lambda inputs: forward(model, inputs, training=False), inputs)
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return None
    shapes = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in flatten(outputs) if hasattr(leaf, "shape")]
    return None if any(None in shape for shape, _ in shapes) else shapes


def build_by_call(model: Any, x: Any) -> None:
    """Creates the weights of a model that was never called, as ``predict`` would; nothing else of it changes.

    Args:
        model: A Keras model; it need not be compiled.
        x: A few samples.
    """
    with keras.StatelessScope():
        model(map_leaves(keras.ops.convert_to_tensor, x))


def has_weights(model: Any) -> bool:
    """Whether every layer is built."""
    return all(layer.built for layer in model._flatten_layers())


@contextlib.contextmanager
def preserved_state(model: Any) -> Iterator[None]:
    """Inside, changes to moving averages, seeds and metrics are undone at the end; weights must not be changed."""
    variables = [*model.non_trainable_variables, *model.metrics_variables]
    values = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Inside, the dropout and noise of Keras' own layers have rate 0, so that a step is the same twice."""
    changed: list[tuple[Any, str, Any]] = []
    for layer in flat_layers(model):
        for name in ("rate", "stddev", "dropout", "recurrent_dropout", "_dropout"):
            if isinstance(getattr(type(layer), name, None), property):
                continue  # it reads one of the others
            value = getattr(layer, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                changed.append((layer, name, value))
                set_attribute(layer, name, 0.0)
    try:
        yield
    finally:
        for layer, name, value in changed:
            set_attribute(layer, name, value)


def advance_seeds(model: Any) -> None:
    """Moves every random generator of the model on, so that its next draws are others."""
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign_add(np.ones(variable.shape, dtype_name(variable)))


# The optimizer


def optimizer_index(optimizer: Any, variable: Any) -> int:
    """The place of a variable among those that the optimizer was built for."""
    return int(optimizer._get_variable_index(variable))


def optimized_variables(optimizer: Any) -> list[Any]:
    """The variables that the optimizer was built for, in order."""
    return list(optimizer._trainable_variables)


def adam_moments(optimizer: Any) -> list[tuple[Any, Any] | None]:
    """The variables of the first and the second moment of each weight of a built ``keras.optimizers.Adam``."""
    pairs = zip(optimizer._momentums, optimizer._velocities, strict=True)
    return [None if first is None else (first, second) for first, second in pairs]


_PROGRESS = ("_iterations", "_learning_rate")
_OPTIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
_SLOTS = ("use_ema", "ema_momentum", "ema_overwrite_frequency", "gradient_accumulation_steps")
_SLOT_LISTS = ("_model_variables_moving_average", "_accumulated_gradients")


def share_progress(source: Any, target: Any) -> None:
    """Makes iterations, learning rate (variable, schedule or callable) and excluded weights those of another optimizer."""
    for name in _PROGRESS:
        if getattr(target, name) is not getattr(source, name):
            if isinstance(getattr(target, name), keras.Variable):
                target._untrack_variable(getattr(target, name))
            setattr(target, name, getattr(source, name))
    for name in _OPTIONS:
        if hasattr(source, name):
            object.__setattr__(target, name, getattr(source, name))


def share_slots(source: Any, target: Any) -> None:
    """Makes moving averages and accumulated gradients, variables and settings, those of another built optimizer."""
    for name in _SLOTS:
        setattr(target, name, getattr(source, name))
    for name in _SLOT_LISTS:
        if hasattr(source, name):
            setattr(target, name, list(getattr(source, name)))


def learning_rate_of(optimizer: Any) -> Any:
    """The learning rate as the optimizer keeps it: a variable, a schedule or a callable."""
    return optimizer._learning_rate


@contextlib.contextmanager
def replaced_optimizer(model: Any, optimizer: Any) -> Iterator[None]:
    """Inside, another optimizer updates the model: in the place of its own, or inside its ``LossScaleOptimizer``."""
    owner, name = model, "optimizer"
    if hasattr(model.optimizer, "inner_optimizer"):
        owner, name = model.optimizer, "inner_optimizer"
    previous = getattr(owner, name)
    set_attribute(owner, name, optimizer)
    try:
        yield
    finally:
        set_attribute(owner, name, previous)


def hold(variable: Any, value: Any) -> None:
    """Puts a tensor of any shape in the place of a variable's own."""
    variable._value = value


# Losses


def compiled_losses(model: Any) -> list[Any]:
    """The ``keras.losses.Loss`` objects of a built model, one for each compiled loss."""
    return [] if model._compile_loss is None else [entry.loss for entry in model._compile_loss._flat_losses or []]


@contextlib.contextmanager
def replaced_losses(model: Any, replace: Callable[[int, Any], Callable[..., Any]]) -> Iterator[None]:
    """Inside, each compiled loss is called through ``replace(index, loss)`` and updates no metric."""
    compiled = model._compile_loss
    if compiled is None:
        yield
        return
    if not compiled.built:
        raise RuntimeError("The compiled loss is not built; call symbolic_build with the shapes of a batch first.")
    losses, metrics = compiled._flat_losses, compiled._metrics
    compiled._flat_losses = [entry._replace(loss=replace(i, entry.loss)) for i, entry in enumerate(losses)]
    compiled._metrics = [_NoMetric() for _ in losses]
    try:
        yield
    finally:
        compiled._flat_losses, compiled._metrics = losses, metrics


class _NoMetric:
    """Stands in for the metric of one output while a part of a batch is computed."""

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        return None


@contextlib.contextmanager
def overridden_losses(model: Any, losses: list[Any]) -> Iterator[None]:
    """Inside, ``model.losses`` is the given list."""
    previous = model._losses_override
    set_attribute(model, "_losses_override", losses)
    try:
        yield
    finally:
        set_attribute(model, "_losses_override", previous)


@contextlib.contextmanager
def kept_call_losses(model: Any) -> Iterator[None]:
    """Afterwards, what ``add_loss`` and activity regularizers recorded in the last call is what it was before."""
    layers = list(model._flatten_layers())
    kept = [list(layer._losses) for layer in layers]
    try:
        yield
    finally:
        for layer, losses in zip(layers, kept, strict=True):
            layer._losses.clear()
            layer._losses.extend(losses)


def num_weight_losses(model: Any) -> int:
    """How many entries, at the end of ``model.losses``, are weight regularizers."""
    return sum(variable.regularizer is not None for variable in model.trainable_weights)


def update_loss_metrics(model: Any, total: Any, outputs: list[Any], num_samples: Any, known_samples: Any) -> None:
    """Records the losses of a whole batch as the plain step would: the total, and each output's where there are several.

    Args:
        model: A compiled and built model.
        total: The loss of the batch.
        outputs: Each compiled loss, before its loss weight.
        num_samples: Samples of the batch.
        known_samples: The same where the traced shape knows it, else None: the weight that Keras gives each output's loss.
    """
    model._loss_tracker.update_state(total, sample_weight=num_samples)
    metrics = [] if model._compile_loss is None else model._compile_loss.metrics
    if metrics and len(metrics) == len(outputs):
        for metric, value in zip(metrics, outputs, strict=True):
            metric.update_state(value, sample_weight=known_samples)


def input_structure(model: Any) -> Any:
    """The symbolic inputs as the model takes them: one, a list or a dictionary."""
    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return structure
    return model.inputs[0] if len(model.inputs) == 1 else model.inputs


def synthetic_targets(model: Any, x: Any) -> Any:
    """Zeros in the shape that each output's loss takes: class numbers where it is sparse, the output's shape elsewhere.

    Args:
        model: A compiled model.
        x: Its inputs: anything with ``shape`` and ``dtype``.
    """
    symbols = map_leaves(lambda leaf: keras.KerasTensor(leaf.shape, str(leaf.dtype)), x)
    structure = model.compute_output_spec(symbols)
    outputs = keras.tree.flatten(structure)
    given = keras.tree.flatten(model.loss)
    losses = given if len(given) == len(outputs) else [given[0] if given else None] * len(outputs)

    def target(tensor: Any, loss: Any) -> np.ndarray:
        name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
        sparse = "sparse" in str(name)
        shape = tensor.shape[1:-1] if sparse else tensor.shape[1:]
        return np.broadcast_to(np.zeros((1, *shape), "int32" if sparse else tensor.dtype), (tensor.shape[0], *shape))

    targets = [target(tensor, loss) for tensor, loss in zip(outputs, losses, strict=True)]
    return keras.tree.pack_sequence_as(structure, targets)


def has_call_losses(model: Any) -> bool:
    """Whether a layer may add losses of its activations: an activity regularizer, or a call of the user's own code."""
    own = (layer for layer in [model, *flat_layers(model)] if not type(layer).__module__.startswith("keras.src."))
    return any(getattr(layer, "activity_regularizer", None) for layer in flat_layers(model)) or any(own)


def may_be_scalar(model: Any) -> bool:
    """Whether some loss may come as one number for a whole batch: a function or class of the user's own."""
    if overrides(model, "compute_loss"):
        return True
    functions = (getattr(loss, "fn", type(loss)) for loss in compiled_losses(model))
    return not all(getattr(function, "__module__", "").startswith("keras.src.") for function in functions)


def mask_of(tensor: Any) -> Any | None:
    """The Keras mask that travels with a tensor."""
    return keras_backend.get_keras_mask(tensor)


def weight_of_entries(sample_weight: Any, mask: Any, *, dtype: str) -> Any:
    """Sample weight and mask merged as ``mean_with_sample_weight`` merges them."""
    return keras_loss.apply_mask(sample_weight, mask, dtype=dtype, reduction="mean_with_sample_weight")


def makes_masks(model: Any) -> bool:
    """Whether some layer of the model, or some loss, may put a mask on what the loss sees."""
    layers = any(
        overrides(layer, "compute_mask") or type(layer).compute_mask is not keras.layers.Layer.compute_mask
        for layer in flat_layers(model)
    )
    losses = any(not isinstance(loss, _PLAIN_LOSSES) for loss in compiled_losses(model))
    return layers or losses or any(hasattr(leaf, "_keras_mask") for leaf in getattr(model, "inputs", None) or ())


_PLAIN_LOSSES = (keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError, keras.losses.CategoricalCrossentropy)


# Data


def num_batches(arguments: dict[str, Any]) -> int | None:
    """Batches of an epoch, as ``fit`` tells its callbacks; None where the data does not know.

    Args:
        arguments: Of ``fit``, by name; its data is not a generator (which would be looked at).
    """
    if arguments.get("steps_per_epoch"):
        return int(arguments["steps_per_epoch"])
    share = arguments.get("validation_split")
    structure = (arguments.get("x"), arguments.get("y"), arguments.get("sample_weight"))
    if share and arguments.get("validation_data") is None and are_arrays(structure):
        num_samples = int(flatten(structure)[0].shape[0] * (1.0 - share))
        return -(-num_samples // (arguments.get("batch_size") or 32))
    names = ("x", "y", "sample_weight", "batch_size", "class_weight")
    found = data_adapters.get_data_adapter(**{name: arguments.get(name) for name in names}).num_batches
    return None if found is None else int(found)


DataAdapter = data_adapter.DataAdapter
"""What ``fit`` accepts as ``x`` beside arrays and data sets (``get_data_adapter`` passes it through)."""


def array_order(num_samples: int, *, batch_size: int | None, steps: int | None, shuffle: Any) -> Any:
    """Keras' own array adapter over ``range(num_samples)``: yields the indices of each batch in the order of ``fit``."""
    return _IndexAdapter(np.arange(num_samples), batch_size=batch_size, steps=steps, shuffle=shuffle)


class _IndexAdapter(array_data_adapter.ArrayDataAdapter):
    """Iterates over bare index vectors where Keras' adapter gives tuples of one array."""

    def get_numpy_iterator(self) -> Iterator[Any]:
        return map(_only, super().get_numpy_iterator())

    def get_jax_iterator(self) -> Iterator[Any]:
        return map(_only, super().get_jax_iterator())


def _only(structure: Any) -> Any:
    (leaf,) = flatten(structure)
    return leaf


def skip_build_draw(num_samples: int, *, batch_size: int | None, steps: int | None, shuffle: Any) -> None:
    """Draws the random numbers that ``fit`` would draw to look at a first batch when it builds the model itself.

    After ``symbolic_build`` has done the building, ``fit`` draws once less; this keeps the order of its batches.
    """
    order = array_order(num_samples, batch_size=batch_size, steps=steps, shuffle=shuffle)
    if framework() == "jax":
        next(iter(order.get_jax_iterator()))
    elif framework() == "torch":
        next(iter(order.get_torch_dataloader()))


def lists_to_tuples(structure: Any) -> Any:
    """The structure with tuples for lists, as ``tf.data`` wants it."""
    return keras.tree.lists_to_tuples(structure)


def class_weights(y: Any, class_weight: Any) -> Any:
    """One sample weight for each label, as ``fit(class_weight=...)`` computes them."""
    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def are_arrays(structure: Any) -> bool:
    """Whether ``fit`` would take the structure as arrays."""
    return bool(array_data_adapter.can_convert_arrays(structure))
