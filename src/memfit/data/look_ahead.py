"""Batches made ahead of time, by a few threads, never more than a set number.

Keras has such a queue of its own (``PyDataset(workers=2)``), but it keeps the batches that are left in it when an epoch
ends, as happens when ``fit`` builds a model with one batch, and feeds them first in the next epoch: samples come twice
or not at all. Here a batch that was made ahead is only ever handed out as what it is.
"""

from __future__ import annotations

import concurrent.futures
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")
Batch = TypeVar("Batch")


class PendingBatch(Generic[Batch]):
    """A batch whose parts are being made.

    Args:
        parts: One future a part; their exceptions are raised by ``result``.
        finish: Makes the batch when all parts are done.
    """

    def __init__(self, parts: Sequence[concurrent.futures.Future[None]], finish: Callable[[], Batch]) -> None:
        self._parts = parts
        self._finish = finish

    def result(self) -> Batch:
        for part in self._parts:
            part.result()
        return self._finish()

    def cancel(self) -> None:
        for part in self._parts:
            part.cancel()


class LookAhead(Generic[Key, Batch]):
    """Hands out batches and starts those that will be wanted next.

    Threads are started when a batch is asked for and live until ``close``; a later batch starts new ones.

    Args:
        start: Submits the parts of the batch named by a key to an executor.
        workers: Threads that make parts.
        depth: The most batches that are started before they are asked for.
    """

    def __init__(
        self,
        start: Callable[[concurrent.futures.Executor, Key], PendingBatch[Batch]],
        *,
        workers: int,
        depth: int,
    ) -> None:
        self._start = start
        self._workers = workers
        self._depth = depth
        self._pending: dict[Key, PendingBatch[Batch]] = {}
        self._lock = threading.Lock()
        self._executor: concurrent.futures.Executor | None = None

    def take(self, key: Key, following: Iterable[Key]) -> Batch:
        """The batch of ``key``, after starting those of ``following`` as far as there is room."""
        with self._lock:
            pending = self._pending.pop(key, None)
            if pending is None:
                pending = self._started(key)
            self._start_ahead(list(following)[: self._depth])
        return pending.result()

    def limit(self, depth: int) -> None:
        """Starts no more batches ahead than this from here on; those that are too many are dropped."""
        with self._lock:
            self._depth = depth
            while len(self._pending) > depth:
                self._pending.popitem()[1].cancel()

    def close(self) -> None:
        """Drops what was started and not asked for, and lets the threads end."""
        with self._lock:
            while self._pending:
                self._pending.popitem()[1].cancel()
            executor, self._executor = self._executor, None
        if executor is not None:
            # Not waited for: another thread may still be owed a batch that was started here.
            executor.shutdown(wait=False)

    def _started(self, key: Key) -> PendingBatch[Batch]:
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(self._workers, thread_name_prefix="memfit-data")
        return self._start(self._executor, key)

    def _start_ahead(self, wanted: list[Key]) -> None:
        for key in [key for key in self._pending if key not in wanted]:
            if len(self._pending) + sum(key not in self._pending for key in wanted) > self._depth:
                self._pending.pop(key).cancel()
        for key in wanted:
            if key not in self._pending:
                self._pending[key] = self._started(key)


class BatchForecast:
    """Foresees which batch ``fit`` will ask for next.

    ``fit`` shuffles the order of the batches with Python's global random generator, right after it asked for their
    number. The state of the generator at that moment gives the order away. A wrong guess costs speed and nothing else.
    """

    def __init__(self) -> None:
        self._state: object = None
        self._order: list[int] | None = None
        self._expected = 0
        self._rank = -1

    def note_pass(self) -> None:
        """The number of batches was asked for: a pass over the data may begin."""
        self._state = random.getstate()

    def following(self, index: int, *, num_batches: int, depth: int) -> list[int]:
        """Up to ``depth`` batches that will come after ``index``, which is asked for now; none if that is unknown."""
        shuffled = self._shuffled(num_batches)
        if self._order is not None and index == self._expected:
            self._rank += 1
        elif shuffled is not None and shuffled[0] == index:
            self._order, self._rank = shuffled, 0
        else:
            self._order, self._rank = None, index
        known = self._order is not None or index in (0, self._expected)
        order: Sequence[int] = range(num_batches) if self._order is None else self._order
        ahead = list(order[self._rank + 1 : self._rank + 1 + max(depth, 1)])
        if not ahead:
            self._order = None
        self._expected = ahead[0] if ahead else 0
        return ahead[:depth] if known else []

    def _shuffled(self, num_batches: int) -> list[int] | None:
        """What Keras' shuffle makes of the order with the state that was noted; only asked once a pass."""
        if self._state is None:
            return None
        generator = random.Random()
        generator.setstate(self._state)  # type: ignore[arg-type]
        self._state = None
        order = list(range(num_batches))
        generator.shuffle(order)
        return order
