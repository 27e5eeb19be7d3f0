"""A new model from the graph of another: layers exchanged or resized, every weight that can be kept carried over."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_graph, keras_saving, keras_seam
from memfit.errors import ArgumentError
from memfit.shrink.anatomy import Anatomy, checked_graph
from memfit.shrink.calls import Part
from memfit.shrink.channels import Kept
from memfit.shrink.selection import values

AS_MODEL = object()
"""Compile the new model as the old one is."""

Replace = Callable[[Any], Any]
"""From a layer to the one that takes its place, built anew; None for a copy of it."""


def rebuilt(
    model: Any,
    replace: Replace,
    *,
    finish: Callable[[], None] | None = None,
    input_tensors: Any = None,
    compile_config: Any = AS_MODEL,
) -> Any:
    """A new model with some layers replaced; the others are copied with their weights. The model is left as it is.

    Args:
        model: A built model with a graph.
        replace: From a layer to its replacement, or None to copy it.
        finish: Called before the new model is compiled; sets the weights of the replacements.
        input_tensors: New ``keras.Input`` in the structure of the model's inputs.
        compile_config: Of the new model; left out, that of the model; None to leave it uncompiled.

    Raises:
        ArgumentError: The model has no graph, or a layer of the user's own cannot be copied.
    """
    checked_graph(model)
    clones: dict[int, tuple[Any, Any]] = {}

    def clone(layer: Any) -> Any:
        if id(layer) not in clones:
            clones[id(layer)] = (layer, _clone(layer, replace, clone))
        return clones[id(layer)][1]

    with keras_saving.no_imports(), keras.saving.custom_object_scope(_own_objects(model)):
        if compile_config is AS_MODEL:
            compile_config = model.get_compile_config() if model.compiled else None
        with _uncompiled(model):
            new = keras.models.clone_model(model, input_tensors=input_tensors, clone_function=clone)
        for old, made in clones.values():
            if type(old) is type(made) and not keras_graph.graph_of(old):
                copy_weights(old, made)
        if finish is not None:
            finish()
        if compile_config:
            new.compile_from_config(compile_config)
    return new


@contextlib.contextmanager
def _uncompiled(model: Any) -> Iterator[None]:
    """Inside, the model does not say that it is compiled, so that Keras does not compile its copy before it has its weights."""
    was, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = was


def copied(model: Any, *, change: Callable[[Any], None] | None = None) -> Any:
    """A copy of any built model, compiled as it is, with a fresh optimizer.

    Args:
        model: The model; it is left as it is.
        change: Called with the copy before it is compiled.

    Raises:
        ArgumentError: The model is of a class of your own that cannot be copied.
    """
    with keras_saving.no_imports(), keras.saving.custom_object_scope(_own_objects(model)):
        if keras_graph.graph_of(model) is not None:
            new = rebuilt(model, lambda layer: None, compile_config=None)
        else:
            new = _of_class(model)
        if change is not None:
            change(new)
        if model.compiled:
            new.compile_from_config(model.get_compile_config())
    return new


def _of_class(model: Any) -> Any:
    """A copy of a model whose call is its class' own."""
    new = from_config(model, model.get_config())
    if not new.built:
        try:
            new.build_from_config(model.get_build_config())
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ArgumentError(
                f"The model cannot be copied: {error} Received: {model.name!r}, a {type(model).__name__}. Build it as a "
                "Functional or Sequential model, or give its class a get_config and a build."
            ) from error
    for source, target in zip(model.variables, new.variables, strict=True):
        target.assign(values(source))
    return new


def _own_objects(model: Any) -> dict[str, Any]:
    return keras_seam.own_objects(model) if model.compiled else {type(one).__name__: type(one) for one in model.layers}


def _clone(layer: Any, replace: Replace, clone: Replace) -> Any:
    made = replace(layer)
    if made is not None:
        return made
    if keras_graph.graph_of(layer) is not None:
        return keras.models.clone_model(layer, clone_function=clone)
    return from_config(layer, _unbuilt(layer.get_config()))


def from_config(layer: Any, config: Mapping[str, Any]) -> Any:
    """A layer of the same class with this configuration.

    Raises:
        ArgumentError: The layer's class cannot be made from a configuration.
    """
    try:
        return type(layer).from_config(copy.deepcopy(dict(config)))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ArgumentError(
            f"The layer {layer.name!r} cannot be copied: {error} Received: a {type(layer).__name__}. Give the class a "
            "get_config that names all arguments of its constructor."
        ) from error


def copy_weights(old: Any, new: Any) -> None:
    """Gives a layer the weights of another as far as their shapes agree, and its vocabulary or statistics."""
    for source, target in zip(getattr(old, "weights", ()), getattr(new, "weights", ()), strict=False):
        if tuple(source.shape) == tuple(target.shape):
            target.assign(values(source))
    if callable(getattr(old, "finalize_state", None)) and new.built:
        new.finalize_state()
    if callable(getattr(old, "load_assets", None)):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def cut(found: Anatomy, kept: Kept) -> Any:
    """The model with the kept channels alone, compiled as it is."""
    resized: list[tuple[Part, Any]] = []

    def replace(layer: Any) -> Any:
        part = found.parts.get(id(layer))
        if part is None or not (part.cuts or part.sizes):
            return None
        made = from_config(layer, _config(part, kept))
        resized.append((part, made))
        return made

    def carry_over() -> None:
        for part, made in resized:
            weights = getattr(part.layer, "weights", ())
            for source, target in zip(weights, getattr(made, "weights", ()), strict=True):
                target.assign(part.cuts[id(source)].applied(values(source), kept))

    return rebuilt(found.model, replace, finish=carry_over)


def _config(part: Part, kept: Kept) -> dict[str, Any]:
    config = _unbuilt(copy.deepcopy(part.layer.get_config()))
    for path, atoms in part.sizes:
        count = len(kept.positions(atoms))
        owner = config
        for step in path[:-1]:
            owner = owner[step]
        entry = owner[path[-1]]
        owner[path[-1]] = [*entry[:-1], count] if isinstance(entry, (list, tuple)) else count
    return config


def _unbuilt(config: Any) -> Any:
    """A configuration whose inner layers are built for the shapes that come, not for those of the model it was taken from."""
    if isinstance(config, dict):
        return {key: _unbuilt(entry) for key, entry in config.items() if key != "build_config"}
    return [_unbuilt(entry) for entry in config] if isinstance(config, list) else config


def parameters(model: Any) -> int:
    """Numbers in a model's weights."""
    return int(sum(np.prod(weight.shape) for weight in model.weights))
