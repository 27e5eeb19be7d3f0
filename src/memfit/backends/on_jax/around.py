"""JAX: a function around the step.

Keras' validation and prediction steps give their state away (donation): after a failure the model's weights are gone.
The steps here keep it. What passes a step unchanged is not copied for that: JAX hands the argument on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax
import keras

from memfit.backends.around import Around, Wrapper
from memfit.backends.on_jax.step import compiles_whole

_kept: weakref.WeakKeyDictionary[Any, Callable[..., Any]] = weakref.WeakKeyDictionary()
"""Compiled steps by the function that Keras made, which ``compile`` replaces."""


class JaxAround(Around):
    """Keras' loop calls the step on the state and an iterator, and takes the new state from it."""

    def __init__(self, model: Any, kind: str, wrapper: Wrapper) -> None:
        super().__init__(model, kind, wrapper)
        self._state: Any = None

    def __call__(self, state: Any, iterator: Any) -> Any:
        self._state = state

        def run(batch: Any) -> Any:
            results, self._state = self._step(self._state, batch)
            return results

        results = [self._wrapper(run, next(iterator))]
        for _ in range(self._model.steps_per_execution - 1):
            batch = next(iterator, None)
            if batch is None:
                break
            results.append(self._wrapper(run, batch))
        state, self._state = self._state, self._state if self._kind != "train" else None
        return self._joined(results), state

    def rescue(self) -> None:
        """Keras takes the values out of the variables while it evaluates or predicts, and does not put them back."""
        if self._kind == "train" or self._state is None:
            return
        model = self._model
        groups = (model.trainable_variables, model.non_trainable_variables)
        groups += (model.metrics_variables,) if self._kind == "test" else ()
        for variables, values in zip(groups, self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        if self._kind == "train" or not compiles_whole(self._model):
            return self.inner(state, iter([batch]))
        if self.inner not in _kept:
            _kept[self.inner] = _keeping(self._model, self._kind)
        return _kept[self.inner](state, batch)

    def _joined(self, results: list[Any]) -> Any:
        if self._kind != "predict" or len(results) == 1:
            return results[-1]
        return keras.tree.map_structure(lambda *parts: jax.numpy.concatenate(parts), *results)


def _keeping(model: Any, kind: str) -> Callable[..., Any]:
    """Keras' step compiled without donation. It must not keep the model, which keeps it."""
    of = weakref.ref(model)

    def test_step(state: Any, data: Any) -> Any:
        return _alive(of).test_step(state, data)

    def predict_step(state: Any, data: Any) -> Any:
        outputs, others = _alive(of).predict_step(state, data)
        return outputs, (state[0], others)

    return jax.jit(test_step if kind == "test" else predict_step)


def _alive(of: Any) -> Any:
    model = of()
    assert model is not None, "the step of a model that is gone"
    return model
