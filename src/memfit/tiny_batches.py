"""Tests of a model on a tiny batch of the user's data: how many samples the room allows, and what a test leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.levers import micro_batch
from memfit.planning.request import Request
from memfit.predicting import Predictions
from memfit.profiling.batches import Batches
from memfit.records import Levers
from memfit.reporting.console import shown

_TEST_SHARE = 0.25
"""Of the room that is left, what a step of a tiny batch may take: a test holds two steps' results and what runs them."""

_UPDATE = 3
_RESULTS = 2
"""Gradients' worth of a step that does not grow with the batch, and of a test: what it compares, as it updates nothing."""

_UNTRACED = 4
"""Times of what a step takes for a sample that operations one by one leave of it, where the framework keeps what was freed."""

_MAY_STAY = 0.1
"""Of the room, what a test may leave of that."""


class TinyBatches:
    """The tiny batches that one model is tested on.

    Args:
        model: A built and compiled model.
        batches: Of its data.
        prediction: Of its steps.
        backend: The current backend.
        plain: Levers of the step in whose kernels tests run.
        request: What was asked for: the budget, and whether to be quiet.
    """

    def __init__(
        self,
        model: Any,
        batches: Batches,
        prediction: Predictions,
        backend: Backend,
        *,
        plain: Levers,
        request: Request,
    ) -> None:
        self._model = model
        self._batches = batches
        self._prediction = prediction
        self._keeps_freed = backend.keeps_freed(model)
        self._plain = plain
        self._request = request

    def sample(self, fewest: int) -> Any | None:
        """As many samples as the room allows, or None where it allows fewer than so many."""
        one, room = self._costs()
        if _RESULTS * self._prediction.gradients + fewest * one > room:
            return None
        most = fewest if self._keeps_freed else int(_TEST_SHARE * room / one)
        return self._batches.sample(min(micro_batch.SAMPLES, max(fewest, most)))

    @contextlib.contextmanager
    def running(self, sample: Any | None, text: str) -> Iterator[None]:
        """Around a test: shown, reckoned with, and traced where what it leaves would otherwise take much of the room.

        Args:
            sample: What ``sample`` gave.
            text: What is being done.
        """
        traced = self._keeps_freed and sample is not None and self._leaves_much(sample)
        mark = keras_seam.marked_for_traced_tests(self._model) if traced else contextlib.nullcontext()
        with shown(text, quiet=self._request.quiet), self._prediction.testing(), mark:
            yield

    def _leaves_much(self, sample: Any) -> bool:
        one, room = self._costs()
        return bool(_UNTRACED * keras_seam.flatten(sample)[0].shape[0] * one > _MAY_STAY * room)

    def _costs(self) -> tuple[float, int]:
        """Bytes that a sample takes in a step, and those that there are."""
        idle = self._prediction.idle()
        step = self._prediction.peak(None, self._plain).bytes - idle
        one = max(1.0, (step - _UPDATE * self._prediction.gradients) / (self._batches.batch_size or 1))
        return one, self._request.budget.limiting_bytes - idle
