from __future__ import annotations

import concurrent.futures
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.data.look_ahead import BatchForecast, LookAhead, PendingBatch


def keras_order(num_batches: int) -> list[int]:
    """What Keras' PyDatasetAdapter does with ``shuffle=True``."""
    indices = list(range(num_batches))
    random.shuffle(indices)
    return indices


class Kitchen:
    """Makes batches that are their own keys, and counts."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.alive = 0
        self.most_alive = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def start(self, executor: concurrent.futures.Executor, key: int) -> PendingBatch[int]:
        self.started.append(key)

        def part() -> None:
            assert self.may_go_on.wait(timeout=30)
            if key < 0:
                raise ValueError("a bad batch")

        return PendingBatch([executor.submit(part) for _ in range(2)], lambda: key)


def test_batches_are_what_was_asked_for_and_nothing_is_made_twice() -> None:
    kitchen = Kitchen()
    ahead: LookAhead[int, int] = LookAhead(kitchen.start, workers=2, depth=2)
    assert [ahead.take(key, range(key + 1, 10)) for key in range(10)] == list(range(10))
    assert kitchen.started == list(range(10))


@given(
    depth=st.integers(0, 4), requests=st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=5)))
)
def test_never_more_ahead_than_allowed_whatever_is_asked_for(depth: int, requests: list[tuple[int, list[int]]]) -> None:
    ahead: LookAhead[int, int] = LookAhead(Kitchen().start, workers=1, depth=depth)
    for key, following in requests:
        assert ahead.take(key, dict.fromkeys(following)) == key
        assert len(ahead._pending) <= depth


def test_batches_are_made_before_they_are_asked_for() -> None:
    kitchen = Kitchen()
    ahead: LookAhead[int, int] = LookAhead(kitchen.start, workers=1, depth=2)
    ahead.take(0, [1, 2, 3])
    assert kitchen.started == [0, 1, 2]


def test_clear_drops_what_waits() -> None:
    kitchen = Kitchen()
    ahead: LookAhead[int, int] = LookAhead(kitchen.start, workers=1, depth=2)
    ahead.take(0, [1, 2])
    ahead.close()
    assert ahead.take(1, []) == 1
    assert kitchen.started == [0, 1, 2, 1]


def test_an_error_in_a_thread_reaches_the_one_who_asks() -> None:
    ahead: LookAhead[int, int] = LookAhead(Kitchen().start, workers=1, depth=1)
    assert ahead.take(0, [-1]) == 0
    with pytest.raises(ValueError, match="a bad batch"):
        ahead.take(-1, [])


@given(num_batches=st.integers(1, 40), seed=st.integers(0, 2**32), depth=st.integers(0, 4))
def test_the_order_that_fit_shuffles_is_foreseen(num_batches: int, seed: int, depth: int) -> None:
    forecast = BatchForecast()
    random.seed(seed)
    for _ in range(3):
        forecast.note_pass()
        order = keras_order(num_batches)
        for position, index in enumerate(order):
            ahead = forecast.following(index, num_batches=num_batches, depth=depth)
            assert ahead == order[position + 1 : position + 1 + depth]


@given(num_batches=st.integers(1, 40))
def test_batches_in_turn_are_foreseen(num_batches: int) -> None:
    forecast = BatchForecast()
    for _ in range(2):
        for index in range(num_batches):
            ahead = forecast.following(index, num_batches=num_batches, depth=2)
            assert ahead == list(range(index + 1, min(index + 3, num_batches)))


@given(seed=st.integers(0, 2**32))
def test_batches_in_turn_are_foreseen_where_fit_might_have_shuffled(seed: int) -> None:
    forecast = BatchForecast()
    random.seed(seed)
    forecast.note_pass()
    for index in range(40):
        ahead = forecast.following(index, num_batches=40, depth=2)
        # The shuffled order may begin like the plain one; ten in a row do not happen.
        assert ahead == list(range(index + 1, min(index + 3, 40))) or index < 10


def test_a_pass_in_turn_after_a_shuffled_one_is_foreseen() -> None:
    forecast = BatchForecast()
    random.seed(3)
    forecast.note_pass()
    for index in keras_order(20):
        forecast.following(index, num_batches=20, depth=2)
    assert forecast.following(0, num_batches=20, depth=2) == [1, 2]
    assert forecast.following(1, num_batches=20, depth=2) == [2, 3]


def test_asking_for_the_length_in_the_middle_changes_nothing() -> None:
    forecast = BatchForecast()
    random.seed(5)
    forecast.note_pass()
    order = keras_order(20)
    for position, index in enumerate(order):
        assert forecast.following(index, num_batches=20, depth=1) == order[position + 1 : position + 2]
        if position < 19:
            forecast.note_pass()
            random.random()


def test_nothing_is_guessed_from_a_jump_and_resuming_in_the_middle_catches_up() -> None:
    forecast = BatchForecast()
    assert forecast.following(7, num_batches=20, depth=2) == []
    assert forecast.following(8, num_batches=20, depth=2) == [9, 10]
    assert forecast.following(3, num_batches=20, depth=2) == []


def test_a_limit_drops_what_was_made_too_far_ahead_and_holds_until_the_next() -> None:
    kitchen = Kitchen()
    ahead: LookAhead[int, int] = LookAhead(kitchen.start, workers=1, depth=4)
    ahead.take(0, range(1, 10))
    ahead.limit(1)
    assert list(ahead._pending) == [1]
    assert ahead.take(1, range(2, 10)) == 1
    assert list(ahead._pending) == [2]
    ahead.limit(3)
    ahead.take(2, range(3, 10))
    assert list(ahead._pending) == [3, 4, 5]
