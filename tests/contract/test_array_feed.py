"""Arrays fed by index: the batches and the order of plain ``fit``, without a copy of the array."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from memfit.backends.array_feed import ArrayFeed, copied_bytes

N = 53


def seen_by_fit(x: Any, y: Any = None, **arguments: Any) -> list[np.ndarray]:
    """The targets of each batch of two epochs, in the order in which the trainer sees them."""
    seen: list[np.ndarray] = []
    keras.utils.set_random_seed(11)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    make = type(model).make_train_function

    def recording(data: Any) -> dict[str, Any]:
        for batch in data if keras.backend.backend() == "torch" else [next(iter(data))]:
            seen.append(keras.ops.convert_to_numpy(batch[1]))
        return {}

    def make_train_function(force: bool = False) -> None:
        make(model)
        jax = keras.backend.backend() == "jax"
        model.train_function = (lambda state, data: (recording(data), state)) if jax else recording

    object.__setattr__(model, "make_train_function", make_train_function)
    model.fit(x, y, epochs=2, verbose=0, **arguments)
    return seen


def arrays() -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(N, dtype="float32").reshape(N, 1)
    return x, x.copy()


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
def test_batches_and_order_are_those_of_fit(shuffle: Any) -> None:
    x, y = arrays()
    plain = seen_by_fit(x, y, batch_size=8, shuffle=shuffle)
    fed = seen_by_fit(ArrayFeed((x, y, None), batch_size=8, steps=None, shuffle=shuffle))
    assert len(plain) == len(fed) > 0
    for a, b in zip(plain, fed, strict=True):
        np.testing.assert_array_equal(a, b)


def epoch(feed: ArrayFeed) -> list[Any]:
    iterators = {
        "tensorflow": lambda: list(feed.get_tf_dataset().as_numpy_iterator()),
        "jax": lambda: list(feed.get_jax_iterator()),
        "torch": lambda: [tuple(part.numpy() for part in batch) for batch in feed.get_torch_dataloader()],
    }
    return iterators[keras.backend.backend()]()


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_an_epoch_is_a_full_permutation(shuffle: Any) -> None:
    x, y = arrays()
    feed = ArrayFeed((x, y, None), batch_size=8, steps=None, shuffle=shuffle)
    keras.utils.set_random_seed(1)
    orders = []
    for _ in range(2):
        batches = epoch(feed)
        orders.append(np.concatenate([batch[0][:, 0] for batch in batches]))
        feed.on_epoch_end()
        for batch in batches:
            np.testing.assert_array_equal(batch[0], batch[1])
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
        assert not np.array_equal(order, np.arange(N))


def test_floats_are_cast_and_integers_kept() -> None:
    x = {"a": np.arange(N, dtype="float64").reshape(N, 1), "b": np.arange(N, dtype="uint8")}
    feed = ArrayFeed((x, np.zeros((N,), "int64"), None), batch_size=8, steps=None, shuffle=False)
    batch = feed.gather(np.arange(3))
    assert batch[0]["a"].dtype == np.float32
    assert batch[0]["b"].dtype == np.uint8
    assert batch[1].dtype == np.int64


def test_steps_decide_the_batch_size_as_in_fit() -> None:
    x, y = arrays()
    assert ArrayFeed((x, y, None), batch_size=None, steps=4, shuffle=False).batch_size == 14
    assert ArrayFeed((x, y, None), batch_size=None, steps=None, shuffle=False).batch_size == 32


def test_copied_bytes_counts_what_keras_would_copy() -> None:
    small, wide = np.zeros((4, 2), "float32"), np.zeros((4, 2), "float64")
    expected = 32 + 64 if keras.backend.backend() == "tensorflow" else 64
    assert copied_bytes((small, wide, None)) == expected
    assert copied_bytes(([1, 2, 3], wide)) == 0
