"""Batches of changing shapes, and queues of whole batches: planned for as they come, on every backend."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends, budgeting
from memfit.backends import keras_seam
from memfit.data import queues
from memfit.errors import OutOfMemoryError
from memfit.executing import noticed
from memfit.levers import micro_batch
from memfit.records import TensorSpec
from memfit.units import MIB

LENGTHS = (32, 8192, 48)


def with_room(num_bytes: int) -> int:
    """A budget of so much more than is held. What earlier tests have left must not go away between this and the plan."""
    gc.collect()
    backends.current().release()
    return budgeting.reading().host_bytes + num_bytes


class Sentences(keras.utils.PyDataset):
    """One batch of each length."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        return rng.normal(size=(16, LENGTHS[index], 4)).astype("float32"), np.ones((16, 1), "float32")


def model() -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 4))
    hidden = inputs
    for _ in range(3):
        hidden = keras.layers.Conv1D(64, 3, padding="same", activation="relu")(hidden)
    built = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(hidden)))
    built.compile("adam", "mse")
    return built


def test_a_batch_that_is_much_longer_than_the_first_is_planned_for_before_its_step() -> None:
    plain = model()
    expected = plain.fit(Sentences(), epochs=1, shuffle=False, verbose=0)
    ours = model()
    tested = model()
    keras_seam.symbolic_build(tested, (TensorSpec((16, 32, 4), "float32"), TensorSpec((16, 1), "float32"), None))
    # What earlier tests have left goes away as a model is tested: it must not be room that the budget does not mean.
    micro_batch.separability(tested, (*Sentences()[0], None), backends.current())
    backends.current().release()
    budget = with_room(160 * MIB)
    history = memfit.fit(ours, Sentences(), epochs=1, shuffle=False, verbose=0, budget=budget)
    assert history.memfit.plan.micro_batch_size is not None, "the plan that the longest batch left"
    said = [event.message for event in history.memfit.events if event.kind == "larger batch"]
    assert said[-1].startswith("a batch of (16, 8192, 4), the largest so far: memfit: each batch of 16 goes through"), (
        said
    )
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-4)
    for one, other in zip(plain.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_batches_of_changing_shapes_that_fit_are_left_alone() -> None:
    history = memfit.fit(model(), Sentences(), epochs=1, shuffle=False, verbose=0)
    assert history.memfit.plan.micro_batch_size is None
    said = [event.message for event in history.memfit.events if event.kind == "larger batch"]
    assert all(message.endswith("trains as model.fit does") for message in said), said


class Images(keras.utils.PyDataset):
    """Batches of 4 MiB."""

    made = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        self.made += 1
        return np.full((1, 1024, 1024), index, "float32"), np.ones((1, 1), "float32")


def flat() -> Any:
    pooled = keras.layers.GlobalAveragePooling1D()
    built = keras.Sequential([keras.Input((1024, 1024)), pooled, keras.layers.Dense(1)])
    built.compile("sgd", "mse")
    return built


class Many(Images):
    """More than its queue is allowed to hold."""

    def __len__(self) -> int:
        return 30


@pytest.mark.parametrize("raises", [False, True])
def test_a_queue_that_does_not_fit_is_smaller_for_the_run_alone(raises: bool) -> None:
    images = Many(workers=4, max_queue_size=100)
    ahead: list[int] = []

    class Looks(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            images.made = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            time.sleep(0.01)
            ahead.append(images.made - batch - 1)
            assert (images.workers, images.max_queue_size) == (4, 100)
            if raises and batch == 2:
                raise KeyboardInterrupt

    budget = with_room(200 * MIB)
    arguments: dict[str, Any] = {"verbose": 0, "budget": budget, "callbacks": [Looks()]}
    if raises:
        with pytest.raises(KeyboardInterrupt):
            memfit.fit(flat(), images, **arguments)
    else:
        history = memfit.fit(flat(), images, **arguments)
        (said,) = [event.message for event in history.memfit.events if "max_queue_size" in event.message]
        assert "workers=4 and max_queue_size=100 hold 104 batches, 416 MiB" in said
    assert ahead
    assert max(ahead) <= 20, "12 in flight; without a bound all 30"
    assert (images.workers, images.max_queue_size) == (4, 100)


def test_a_queue_that_changes_between_epochs_has_its_size_lent() -> None:
    class Reshuffled(Images):
        def on_epoch_end(self) -> None:
            seen.append(self.workers + self.max_queue_size)

    seen: list[int] = []
    images = Reshuffled(workers=4, max_queue_size=10)
    queue = queues.Queue(1, 2, "smaller")
    with queues.applied({"x": images, "steps_per_epoch": 3}, queue, looks=False) as arguments:
        assert arguments["x"] is images
        assert (images.workers, images.max_queue_size) == (1, 2)
    assert (images.workers, images.max_queue_size) == (4, 10)


def test_at_the_soft_mark_one_batch_waits_in_a_users_queue() -> None:
    images = Many(workers=2, max_queue_size=10)
    with queues.applied({"x": images, "shuffle": False}, queues.Queue(2, 10, "", 4 * MIB), looks=False) as arguments:
        fed = arguments["x"]
        fed.on_epoch_begin()
        order = iter(fed.get_numpy_iterator())
        numbers = [int(next(order)[0][0, 0, 0]) for _ in range(3)]
        assert queues.hold_less(arguments, queues.Queue(2, 10, "", 4 * MIB)) == 9 * 4 * MIB
        assert queues.hold_less(arguments, queues.Queue(2, 10, "", 4 * MIB)) == 0
        numbers += [int(next(order)[0][0, 0, 0]) for _ in range(20)]
        time.sleep(0.2)
        assert images.made - len(numbers) <= 1 + 1 + 1  # waiting, about to, taken
        numbers += [int(batch[0][0, 0, 0]) for batch in order]
        fed.on_epoch_end()
    assert numbers == list(range(30))


def test_queues_that_fit_or_are_none_stay() -> None:
    own = queues.bounded(Images(workers=4, max_queue_size=10), 4 * MIB, 400 * MIB)
    assert own == queues.Queue(4, 10, "", 4 * MIB)
    assert queues.bounded(Images(workers=1, max_queue_size=10), 4 * MIB, 4 * MIB) is None
    smallest = queues.bounded(Images(workers=4, max_queue_size=10), 4 * MIB, 4 * MIB)
    assert smallest is not None
    assert (smallest.workers, smallest.waiting) == (1, 1)
    endless = queues.bounded(Images(workers=2, max_queue_size=0), 4 * MIB, 16 * MIB)
    assert endless is not None
    assert "hold 8 batches" in endless.reason


def test_what_no_plan_can_mend_is_named_with_its_bytes() -> None:
    class Holds(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__()
            self.everything = np.zeros((2 * MIB,), "float32")

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return np.ones((4, 1024, 1024), "float32"), np.ones((4, 1), "float32")

    built = flat()
    dense, hot = np.zeros((64, 32_768), "float32"), np.eye(32_768, dtype="float32")[:64]
    board = keras.callbacks.TensorBoard("never-written", histogram_freq=1)
    wide = keras.Sequential([keras.Input((1024,)), keras.layers.Dense(1024)])
    wide.compile("sgd", "mse")
    said = [
        *noticed.sentences(built, {"x": Holds()}, 100 * MIB),
        *noticed.sentences(built, {"x": dense, "y": hot}, 100 * MIB),
        *noticed.sentences(built, {"x": dense + 1}, 100 * MIB),
        *noticed.sentences(wide, {"x": None, "callbacks": [board]}, 100 * MIB),
    ]
    starts = [
        "Holds holds 8 MiB",
        "y holds 8 MiB of one-hot",
        "x holds 8 MiB, 100%",
        "x holds 8 MiB of data",
        "TensorBoard(",
    ]
    assert len(said) == len(starts), said
    assert all(sentence.startswith(start) for sentence, start in zip(said, starts, strict=True)), said
    assert "280 MiB for the largest" in said[-1]  # of 2**20 numbers
    everything = {"x": Holds(), "callbacks": [board]}
    assert noticed.sentences(wide, everything, 8192 * MIB) == ()


def test_a_run_that_failed_for_want_of_memory_does_not_live_on_in_its_error() -> None:
    left: list[Any] = []

    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            attempt = np.zeros(1000)
            left.append(weakref.ref(attempt))
            raise MemoryError("the user's own")

    with pytest.raises(OutOfMemoryError) as kept:
        memfit.fit(flat(), np.ones((4, 1024, 1024), "float32"), np.ones((4, 1)), verbose=0, callbacks=[Fails()])
    assert kept.value.__cause__ is not None
    assert left[0]() is None
