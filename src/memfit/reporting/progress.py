"""Keras' progress bar with memory beside it.

In a terminal the bar is made to fit its width: one that wraps is written again and again below itself. In a notebook it is
Keras' own. In a log file, where nothing can be written over, it becomes plain lines: one every ten seconds, one an epoch.
What Keras keeps in ``History`` stays as it is: the callback shows a copy of the logs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import keras

from memfit import units
from memfit.records import Budget, Reading
from memfit.reporting import console

_LINE_SECONDS = 10.0
"""Between two lines of a log file inside an epoch."""

_NARROW_BAR = 6
_TIMES = len(" 1:02:03 999ms/step")
_METRIC = len(" - : 0.1234")


class Amount(float):
    """A number that shows as a text: Keras formats what stands in its bar as a number.

    Example:
        >>> f"{Amount(0.5, 'half') / 1:.4f}"
        'half'
    """

    shown: str

    def __new__(cls, value: float, shown: str) -> Amount:
        amount = super().__new__(cls, value)
        amount.shown = shown
        return amount

    def __truediv__(self, count: float) -> Amount:
        """The bar's average over one value."""
        return self

    def __format__(self, specification: str) -> str:
        return self.shown

    def __str__(self) -> str:
        return self.shown


class MemoryProgress(keras.callbacks.ProgbarLogger):
    """Stands where ``fit`` has its progress bar.

    Args:
        peak: Gives the highest reading so far.
        budget: What it is shown beside.
    """

    async_safe = True
    """It does at the end of a batch what Keras' own bar does."""

    def __init__(self, peak: Callable[[], Reading], budget: Budget) -> None:
        super().__init__()
        self._peak = peak
        self._budget = budget
        self._display = console.Display("log")
        self._in_lines = False
        self._next_line = 0.0
        self._one_at_a_time = threading.Lock()

    def set_params(self, params: dict[str, Any]) -> None:
        self._display = console.display()
        self._in_lines = self._display.kind == "log" and params["verbose"] in ("auto", 1)
        super().set_params({**params, "verbose": 2} if self._in_lines else params)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._next_line = time.monotonic() + _LINE_SECONDS

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        with self._one_at_a_time:
            # Keras hands the ends of batches to a pool of threads: one may come after a later one's.
            self._show(max(batch, self.seen - 1), logs or {})

    def _show(self, batch: int, logs: dict[str, Any]) -> None:
        if self.verbose == 1 and self._display.kind == "terminal":
            shown = self._within(console.display().columns or 80, logs)
        else:
            shown = {**logs, **self._memory()}
        super().on_train_batch_end(batch, shown)
        if self._in_lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self._line(batch + 1, shown)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.progbar is None:  # an epoch without a batch, which Keras' own bar fails in
            self.on_epoch_begin(epoch)
        super().on_epoch_end(epoch, {**(logs or {}), **self._memory()})

    def _line(self, num_done: int, shown: dict[str, Any]) -> None:
        if keras.config.is_interactive_logging_enabled():
            values = "".join(f" - {name}: {value:.4f}" for name, value in shown.items())
            print(f"{num_done}/{self.target or 'unknown'}{values}", flush=True)

    def _memory(self) -> dict[str, Amount]:
        """Highest so far, of the budget."""
        peak, budget = self._peak(), self._budget
        found = {"host": Amount(peak.host_bytes / units.GIB, _of(peak.host_bytes, budget.host_bytes))}
        if peak.device_bytes is not None and budget.device_bytes is not None:
            found["device"] = Amount(peak.device_bytes / units.GIB, _of(peak.device_bytes, budget.device_bytes))
        return found

    def _within(self, columns: int, logs: dict[str, Any]) -> dict[str, Any]:
        """As much as fits in a line, memory before metrics, the bar shorter where it must be."""
        peak, budget = self._peak(), self._budget
        held = peak.host_bytes if budget.device_bytes is None or peak.device_bytes is None else peak.device_bytes
        share = held / max(1, budget.limiting_bytes)
        memory = self._memory()
        short = {"memory": Amount(share, f"{share:.0%}")}
        for bar, shown in ((20, {**logs, **memory}), (20, {**logs, **short}), (_NARROW_BAR, {**logs, **short})):
            if self._room(columns, bar, shown) >= 0:
                self._set_width(bar)
                return shown
        self._set_width(_NARROW_BAR)
        shown = dict(short) if self._room(columns, _NARROW_BAR, short) >= 0 else {}
        for name, value in logs.items():
            if self._room(columns, _NARROW_BAR, {**shown, name: value}) >= 0:
                shown[name] = value
        return {name: shown[name] for name in (*logs, *short) if name in shown}

    def _room(self, columns: int, bar: int, shown: dict[str, Any]) -> int:
        """Columns that are left in a line; negative where it wraps."""
        digits = len(str(self.target or 9_999_999))
        items = sum(
            len(name) + (len(" - : ") + len(value.shown) if isinstance(value, Amount) else _METRIC)
            for name, value in shown.items()
        )
        return columns - 1 - (2 * digits + 2 + bar + _TIMES + items)

    def _set_width(self, width: int) -> None:
        if self.progbar is not None:
            self.progbar.width = width


def added(arguments: dict[str, Any], peak: Callable[[], Reading], budget: Budget) -> dict[str, Any]:
    """The arguments of ``fit`` with memory beside the progress bar; as they are where there is none, or one of the user's.

    Args:
        arguments: Of ``fit``, by name.
        peak: Gives the highest reading so far.
        budget: What it is shown beside.
    """
    callbacks = arguments.get("callbacks")
    if arguments.get("verbose", "auto") == 0 or isinstance(callbacks, keras.callbacks.CallbackList):
        return arguments
    given = keras.tree.flatten(callbacks) if callbacks else []
    if any(isinstance(callback, keras.callbacks.ProgbarLogger) for callback in given):
        return arguments
    return {**arguments, "callbacks": [*given, MemoryProgress(peak, budget)]}


def _of(num_bytes: int, total: int) -> str:
    """ "1.9/12.7 GiB"."""
    number, unit = units.text(total).split(" ")
    scale = units.parse(f"1 {unit}")
    return f"{num_bytes / scale:.1f}/{number} {unit}"
