"""The order of the batches is that of plain ``model.fit``, also where that draws one first to build the model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.backends import keras_seam

N = 9


def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    return rng.normal(size=(4, 3)).astype("float32"), rng.normal(size=(4, 1)).astype("float32")


X, Y = (np.concatenate(part) for part in zip(*map(batch, range(N)), strict=True))


class Data(keras.utils.PyDataset):
    """Batches told apart, slow enough for a queue to fill."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        self.made.append(index)
        if self.workers > 1:
            time.sleep(0.02)
        return batch(index)


class Shuffled(Data):
    """Draws a new order at the end of each epoch, and changes what it gives with a generator of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.order = list(range(N))
        self.rng = np.random.default_rng(3)

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(self.order[index])
        return (x, y) if self.workers > 1 else (x + self.rng.normal(size=(4, 3)).astype("float32"), y)

    def on_epoch_end(self) -> None:
        random.shuffle(self.order)


class Late(keras.Model):
    """Makes its layers, and so draws their seeds, when it is built."""

    def build(self, input_shape: Any) -> None:
        self.dense = keras.layers.Dense(1)
        self.dense.build(input_shape)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.dense(x)


def generator() -> Iterator[Any]:
    while True:
        for index in range(N):
            yield batch(index)


def tf_data() -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(36, seed=5).batch(4)


def loader() -> Any:
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)


def unbuilt() -> Any:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.2), "mse")
    return model


def with_input() -> Any:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.2), "mse")
    return model


def late() -> Any:
    model = Late()
    model.compile(keras.optimizers.SGD(0.2), "mse")
    return model


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "no thread": (unbuilt, lambda: Data(workers=0), {"shuffle": False}),
    "shuffled by fit": (unbuilt, lambda: Data(workers=1), {"shuffle": True}),
    "layers made late": (late, lambda: Data(workers=1), {"shuffle": True}),
    "shuffled between epochs": (with_input, lambda: Shuffled(workers=1), {"shuffle": True}),
    "queue of all": (unbuilt, lambda: Data(workers=2), {"shuffle": False}),
    "queue of all, shuffled": (with_input, lambda: Data(workers=2), {"shuffle": True}),
    "small queue": (unbuilt, lambda: Data(workers=2, max_queue_size=3), {"shuffle": False}),
    "queue, shuffled between epochs": (with_input, lambda: Shuffled(workers=2), {"shuffle": False}),
    "queue, part of an epoch": (unbuilt, lambda: Data(workers=2), {"shuffle": False, "steps_per_epoch": 5}),
    "generator": (unbuilt, generator, {"steps_per_epoch": N}),
    "arrays": (unbuilt, lambda: X, {"y": Y, "batch_size": 4}),
}
if keras_seam.framework() == "tensorflow":
    CASES["tf.data"] = (unbuilt, tf_data, {})
if keras_seam.framework() == "torch":
    CASES["loader"] = (unbuilt, loader, {})


def trained(fit: Callable[..., Any], name: str, **more: Any) -> tuple[list[np.ndarray], Any]:
    keras.utils.set_random_seed(11)
    make, make_data, arguments = CASES[name]
    model = make()
    fit(model, make_data(), epochs=3, verbose=0, **arguments, **more)
    return model.get_weights(), random.getstate()


@pytest.mark.parametrize("name", CASES)
def test_batches_come_in_the_order_of_plain_fit(name: str) -> None:
    expected, state = trained(keras.Model.fit, name)
    actual, own_state = trained(memfit.fit, name)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert own_state == state


@pytest.mark.parametrize("name", ["queue of all", "queue of all, shuffled", "small queue", "queue, part of an epoch"])
def test_a_smaller_queue_gives_the_order_of_the_users_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.data import queues

    expected, _ = trained(keras.Model.fit, name)
    monkeypatch.setattr(queues, "bounded", lambda dataset, batch_bytes, room: queues.Queue(1, 1, "smaller"))
    actual, _ = trained(memfit.fit, name)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["shuffled between epochs", *({"tf.data", "loader"} & CASES.keys())])
def test_looking_at_samples_draws_nothing(name: str) -> None:
    expected, _ = trained(keras.Model.fit, name)
    actual, _ = trained(memfit.fit, name, micro_batch_size=2)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def test_a_plan_before_the_run_changes_nothing() -> None:
    def planned(model: Any, data: Any, **arguments: Any) -> Any:
        memfit.plan(model, data, **arguments)
        return memfit.fit(model, data, **arguments)

    for name in ("queue of all, shuffled", "layers made late"):
        expected, _ = trained(keras.Model.fit, name)
        actual, _ = trained(planned, name)
        for one, other in zip(expected, actual, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_a_second_fit_draws_nothing_first() -> None:
    def twice(fit: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: Any, data: Any, **arguments: Any) -> None:
            fit(model, data, **arguments)
            fit(model, data, **arguments)

        return call

    expected, _ = trained(twice(keras.Model.fit), "queue of all")
    actual, _ = trained(twice(memfit.fit), "queue of all")
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["queue of all, shuffled"])
def test_a_run_that_goes_on_keeps_the_order(name: str, tmp_path: Any) -> None:
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, number: int, logs: Any = None) -> None:
            if self.at == (self.epoch, number):
                raise KeyboardInterrupt

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        at = (1, 4)
        epoch = 0

    from memfit.guarding.keeping import Keeping

    expected, _ = trained(keras.Model.fit, name)
    keeping = Keeping(tmp_path / "kept", share=1.0, least_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(memfit.fit, name, snapshots=keeping, callbacks=[Stops()])
    actual, _ = trained(memfit.fit, name, snapshots=keeping)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["queue of all, shuffled", "arrays"])
def test_a_worker_process_keeps_the_order(name: str) -> None:
    expected, state = trained(keras.Model.fit, name)
    actual, own_state = trained(memfit.fit, name, isolate=True)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert own_state == state
