"""Levers and a split on a model while it trains, to be exchanged between two attempts of a step."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

from memfit.backends.protocol import Backend
from memfit.executing.attached import attached
from memfit.levers.pulled import pulled
from memfit.records import Levers, Split


class Arranged:
    """Holds an arrangement on a model; on leaving a ``with`` block nothing is left on it.

    Args:
        model: A built and compiled model.
        backend: The current backend.
    """

    def __init__(self, model: Any, backend: Backend) -> None:
        self._model = model
        self._backend = backend
        self._stack = contextlib.ExitStack()

    def put(self, levers: Levers, split: Split | None, *, analysed: bool) -> None:
        """Puts an arrangement on the model, in the place of the one before.

        Args:
            levers: What to pull.
            split: How batches are split, or None.
            analysed: Whether the plain step was analysed, so that the backend may have it ready.
        """
        self.take_off()
        with contextlib.ExitStack() as stack:
            stack.enter_context(pulled(self._model, levers, self._backend, trains=True))
            stack.enter_context(attached(self._model, split, self._backend, analysed=analysed))
            self._stack = stack.pop_all()

    def take_off(self) -> None:
        """Leaves the model as it was before."""
        stack, self._stack = self._stack, contextlib.ExitStack()
        stack.close()

    def __enter__(self) -> Arranged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.take_off()
