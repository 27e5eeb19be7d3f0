"""The lever that makes steps without XLA: where there is none, nothing of it; the rest is on_tensorflow/test_without_xla.py."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import memfit
from memfit import backends
from memfit.backends import keras_seam
from memfit.errors import ArgumentError
from memfit.levers import without_xla
from memfit.records import Budget, Levers, Plan


@pytest.mark.parametrize("jit", [False, True])
def test_it_is_a_choice_where_xla_is_on_and_the_framework_can_do_without(jit: bool) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit)
    found = without_xla.cost(model, backends.current())
    assert (found is not None) == (jit and keras.backend.backend() == "tensorflow")


def test_a_plan_without_xla_is_refused_where_that_is_no_choice() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=keras.backend.backend() != "tensorflow")
    plan = Plan(8, None, Budget(2**40, "asked for"), levers=Levers(xla_off=True))
    x, before = np.ones((8, 4), "float32"), model.get_weights()
    with pytest.raises(ArgumentError, match="not compiled with XLA, or cannot do without it"):
        memfit.fit(model, x, x[:, :1], batch_size=8, verbose=0, plan=plan)
    for left, right in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)
    assert keras_seam.is_jitted(model) == (keras.backend.backend() != "tensorflow")
