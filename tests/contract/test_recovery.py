"""A step that runs out of memory is undone and goes through again in smaller parts, at any batch of the run."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends
from memfit.backends.around import Around
from memfit.errors import OutOfMemoryError
from memfit.records import DeviceMemory

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = X[:, :2].copy()
BACKEND = keras.backend.backend()


class Allocator:
    """Lets the steps of a run through, or not."""

    def __init__(self) -> None:
        self.size = 16  # samples that go through together now
        self.steps = 0
        self.tried: list[int] = []
        self.most = 16
        self.from_step = 0
        self.written = False
        self.left: list[weakref.ref[Any]] = []

    def __call__(self, around: Around, inner: Any) -> Any:
        def step(*arguments: Any) -> Any:
            if around._kind != "train":
                return inner(*arguments)
            self.tried.append(self.size)
            fails = self.steps >= self.from_step and self.size > self.most
            if fails and not self.written:
                self._raise(around)
            result = inner(*arguments)
            if fails:
                self._raise(around)
            self.steps += 1
            return result

        return step

    def _raise(self, around: Around) -> None:
        activations = np.zeros(100)
        self.left.append(weakref.ref(activations))
        if BACKEND != "jax":
            around._model.metrics_variables[0].assign_add(100.0)
        raise MemoryError(f"{self.size} samples")


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    """Under every step of this process."""
    made = Allocator()
    kind = type(backends.current())
    attach, put_on = kind.attach, Around._put_on

    def recording(self: Any, model: Any, split: Any) -> Any:
        detach = attach(self, model, split)
        made.size = 16 if split is None else split.micro_batch_size

        def off() -> None:
            made.size = 16
            detach()

        return off

    def over_the_allocator(self: Around) -> None:
        put_on(self)
        self.inner, self.plain = made(self, self.inner), self.inner

    def take_off(self: Around) -> None:
        self.inner = self.plain
        plain_take_off(self)

    plain_take_off = Around.take_off
    monkeypatch.setattr(kind, "attach", recording)
    monkeypatch.setattr(Around, "_put_on", over_the_allocator)
    monkeypatch.setattr(Around, "take_off", take_off)
    return made


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The backend believes in an accelerator; the list counts the releases."""
    released: list[int] = []
    kind = type(backends.current())
    monkeypatch.setattr(kind, "device_memory", lambda self: DeviceMemory("gpu", 2**34, 2**20, 2**20))
    monkeypatch.setattr(kind, "release", lambda self: released.append(1))
    return released


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    return model


ARGUMENTS = {"batch_size": 16, "epochs": 2, "verbose": 0, "validation_split": 0.2}


def same_run(ours: Any, report: Any) -> None:
    plain = small_model()
    history = plain.fit(X, Y, **ARGUMENTS)
    for name, values in history.history.items():
        np.testing.assert_allclose(report.history[name], values, rtol=1e-4)
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [None, 12])
@pytest.mark.parametrize("from_step", [0, 1, 3])
def test_the_batch_goes_through_again_and_the_run_is_that_of_model_fit(
    on_a_device: list[int], allocator: Allocator, micro_batch_size: int | None, from_step: int
) -> None:
    allocator.most, allocator.from_step = 6, from_step
    ours = small_model()
    history = memfit.fit(ours, X, Y, **ARGUMENTS, micro_batch_size=micro_batch_size)
    kinds = [event.kind for event in history.memfit.events]
    assert kinds.count("retry") == kinds.count("out of memory") >= 1
    # One as the call begins, one after each failure, one at the end; planning anew may add others.
    assert len(on_a_device) >= kinds.count("out of memory") + 2
    assert history.memfit.plan.micro_batch_size in (3, 4, 6)
    sizes = allocator.tried
    assert sizes == sorted(sizes, reverse=True), "the plan shrinks, and never grows again"
    assert allocator.steps == 4
    gc.collect()
    assert [reference() for reference in allocator.left] == [None] * len(allocator.left)
    allocator.most = 16
    same_run(ours, history)
    assert vars(ours).get("train_step") is None
    assert not isinstance(ours.train_function, Around)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch tells that weights were written, and keeps no copy")
def test_a_first_step_that_had_written_weights_is_undone(on_a_device: list[int], allocator: Allocator) -> None:
    allocator.most, allocator.written = 6, True
    ours = small_model()
    history = memfit.fit(ours, X, Y, **ARGUMENTS)
    allocator.most = 16
    same_run(ours, history)


def test_a_later_step_that_had_written_weights_ends_the_run_with_a_state_that_was_whole(
    on_a_device: list[int], allocator: Allocator
) -> None:
    allocator.most, allocator.written, allocator.from_step = 6, True, 2
    model = small_model()
    with pytest.raises(OutOfMemoryError, match="as weights were being written"):
        memfit.fit(model, X, Y, **ARGUMENTS)
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    assert np.isfinite(model.predict(X, verbose=0)).all()


def test_where_nothing_smaller_is_left_the_error_says_so_and_the_weights_are_back(
    on_a_device: list[int], allocator: Allocator
) -> None:
    allocator.most = 0
    model = small_model()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(OutOfMemoryError, match="smaller `budget`"):
        memfit.fit(model, X, Y, batch_size=16, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert vars(model).get("train_step") is None
    allocator.most = 16
    model.fit(X, Y, verbose=0)


class Raises(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            raise MemoryError("mine")


def test_a_failure_outside_of_a_step_is_not_tried_again(on_a_device: list[int]) -> None:
    model = small_model()
    with pytest.raises(OutOfMemoryError, match="mine"):
        memfit.fit(model, X, Y, batch_size=16, verbose=0, callbacks=[Raises()])
    assert all(np.isfinite(weights).all() for weights in model.get_weights())


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch survives a failure in host memory")
def test_in_host_memory_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def around(*arguments: Any) -> None:
        raise AssertionError("nothing is put around the step")

    monkeypatch.setattr(type(backends.current()), "around", around)
    memfit.fit(small_model(), X, Y, batch_size=16, verbose=0)


@pytest.mark.skipif(BACKEND != "torch" or sys.platform != "linux", reason="a real failure that PyTorch survives")
@pytest.mark.parametrize("name", ["real_failure_script.py", "host_bound_script.py"])
def test_a_real_failure_in_host_memory_is_recovered_from(name: str) -> None:
    script = Path(__file__).with_name(name)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "DefaultCPUAllocator" in run.stdout or "The bound on memory is reached" in run.stdout
    assert "same weights" in run.stdout


@pytest.mark.skipif(BACKEND != "torch", reason="where gradients stay with the weights")
@pytest.mark.parametrize("own_step", [False, True])
def test_a_step_that_is_undone_leaves_no_gradients_but_those_that_the_users_own_may_add_up(own_step: bool) -> None:
    class Own(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    model = (Own if own_step else keras.Sequential)([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    around = backends.current().around(model, "train", lambda run, batch: run(batch))
    kept = around.keep(whole=False)
    for variable in model.trainable_variables:
        variable.value.grad = keras.ops.ones_like(variable.value)
    assert kept.restore()
    assert [variable.value.grad is None for variable in model.trainable_variables] == [not own_step] * 2
    around.take_off()
