"""The only file that touches Keras' private parts, beside ``keras_graph`` for the graph of a model.

Each name used here has a test in ``tests/contract/test_keras_seam.py`` that says which Keras version changed it. Works with
Keras 3.10 to 3.15. What differs by framework is in ``on_tensorflow``, ``on_jax`` and ``on_torch``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from keras.src import backend as keras_backend
from keras.src.trainers.data_adapters import data_adapter_utils


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


def is_of_keras(thing: Any, within: str = "") -> bool:
    """Whether a class or function is Keras' own, and not made by the user; ``within`` names a part of Keras, like "layers."."""
    return str(getattr(thing, "__module__", "")).startswith(f"keras.src.{within}")


def overrides(model: Any, method: str) -> bool:
    """Whether the user's class, not Keras, defines a method of the model."""
    owner = next(cls for cls in type(model).__mro__ if method in vars(cls))
    return method in vars(model) or not is_of_keras(owner)


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


def is_jitted(model: Any) -> bool:
    """Whether Keras hands the steps of a compiled model to XLA, or to ``torch.compile``."""
    return bool(getattr(model, "jit_compile", False)) and not model.run_eagerly


@contextlib.contextmanager
def without_jit(model: Any) -> Iterator[None]:
    """Inside, ``is_jitted`` is false; what was traced before is not forgotten."""
    previous = model._jit_compile
    set_attribute(model, "_jit_compile", False)
    try:
        yield
    finally:
        set_attribute(model, "_jit_compile", previous)


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


_PROGRAMS = "_memfit_programs"


def kept_programs(model: Any) -> dict[Any, Any]:
    """Where what is compiled for the model is kept inside ``keeping_programs``; elsewhere a new dictionary, kept nowhere."""
    return vars(model).get(_PROGRAMS, {})


@contextlib.contextmanager
def keeping_programs(model: Any) -> Iterator[None]:
    """Inside, where nothing but values of the model may change, no gradient is compiled twice."""
    set_attribute(model, _PROGRAMS, {})
    try:
        yield
    finally:
        remove_attribute(model, _PROGRAMS)


_OWN_PAGES = "_memfit_own_pages"
_TRACED_TESTS = "_memfit_traced_tests"


def has_own_pages(model: Any) -> bool:
    """Whether the model's large tensors are to have pages of their own on a CPU."""
    return _OWN_PAGES in vars(model)


def marked_with_own_pages(model: Any) -> AbstractContextManager[None]:
    """Inside, ``has_own_pages`` is true."""
    return _marked(model, _OWN_PAGES)


def tests_are_traced(model: Any) -> bool:
    """Whether gradients of tiny batches are to take as little memory as a step does, at the price of tracing a graph."""
    return _TRACED_TESTS in vars(model)


def marked_for_traced_tests(model: Any) -> AbstractContextManager[None]:
    """Inside, ``tests_are_traced`` is true."""
    return _marked(model, _TRACED_TESTS)


@contextlib.contextmanager
def _marked(model: Any, name: str) -> Iterator[None]:
    set_attribute(model, name, True)
    try:
        yield
    finally:
        remove_attribute(model, name)


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
    own = [one for one in found if not is_of_keras(one)]
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
