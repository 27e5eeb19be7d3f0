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

from memfit.backends import keras_seam
from memfit.backends.around import Around, Kept, Wrapper
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
            results, after = self._step(self._state, batch)
            # A failure is met here, at its own batch; a state that came out of it is never taken over.
            jax.block_until_ready((results, after))
            self._state = after
            return results

        results = [self._wrapper(run, next(iterator))]
        for _ in range(self._model.steps_per_execution - 1):
            batch = next(iterator, None)
            if batch is None:
                break
            results.append(self._wrapper(run, batch))
        return self._joined(results), self._state

    def rescue(self) -> None:
        """Keras takes the values out of the variables while its loop runs, and puts back none or those given away."""
        if self._state is None:
            return
        for variables, values in zip(self._groups(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                held = keras_seam.raw_value(variable)
                if (held is None or held.is_deleted()) and not value.is_deleted():
                    variable.assign(value)

    def exchange(self, change: Callable[[], None]) -> None:
        """As everywhere; inside, the variables have their values, which Keras' loop has taken out."""
        self.rescue()
        super().exchange(change)

    def keep(self, *, whole: bool) -> Kept:
        return _KeptState(self, whole)

    def _groups(self) -> tuple[list[Any], ...]:
        model = self._model
        weights = (model.trainable_variables, model.non_trainable_variables)
        if self._kind == "predict":
            return weights
        optimizer = (model.optimizer.variables,) if self._kind == "train" else ()
        return (*weights, *optimizer, model.metrics_variables)

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


class _KeptState:
    """The state before a train step, which the step gives away (donates) as it runs or not at all."""

    def __init__(self, around: JaxAround, whole: bool) -> None:
        trainable, others, optimizer, metrics = around._state
        self.whole = whole
        self._around = around
        self._small = _copied((others, metrics))
        self._large = jax.device_get((trainable, optimizer)) if whole else (trainable, optimizer)

    def restore(self) -> bool:
        if not self.whole and any(leaf.is_deleted() for leaf in jax.tree.leaves(self._large)):
            return False
        trainable, optimizer = jax.device_put(self._large) if self.whole else self._large
        others, metrics = self._small
        self._around._state = (trainable, others, optimizer, metrics)
        return True


@jax.jit
def _copied(state: Any) -> Any:
    return jax.tree.map(jax.numpy.copy, state)


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
