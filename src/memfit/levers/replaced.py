"""What levers put in the place of a model's own attributes and compiled functions for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend


@contextlib.contextmanager
def replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, the object has this attribute of its own, whatever is assigned to it meanwhile; then what it had before."""
    missing = object()
    previous = vars(owner).get(name, missing)
    keras_seam.set_attribute(owner, name, value)
    try:
        yield
    finally:
        if previous is missing:
            keras_seam.remove_attribute(owner, name)
        else:
            keras_seam.set_attribute(owner, name, previous)


@contextlib.contextmanager
def fresh_train_function(model: Any, backend: Backend) -> Iterator[None]:
    """Inside, the train function is none that was traced without the lever."""
    fresh = backend.fresh_train_function(model) if model.compiled else None
    with replaced_attribute(model, "train_function", fresh):
        yield


@contextlib.contextmanager
def fresh_inference(model: Any) -> Iterator[None]:
    """Inside, validation and prediction are traced anew, and what was traced is forgotten.

    The steps are functions of their own for that time: a framework that keeps traces by function would find those of the
    bound methods.
    """

    def test_step(*args: Any, **kwargs: Any) -> Any:
        return type(model).test_step(model, *args, **kwargs)

    def predict_step(*args: Any, **kwargs: Any) -> Any:
        return type(model).predict_step(model, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for step in (test_step, predict_step):
            if step.__name__ not in vars(model):
                stack.enter_context(replaced_attribute(model, step.__name__, step))
        for name in ("test_function", "predict_function"):
            stack.enter_context(replaced_attribute(model, name, None))
        yield
