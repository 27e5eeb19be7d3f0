"""What is done as host memory runs short while training goes on: release, a smaller plan, or an end that says what grew.

It looks between two batches, twice a second at most. The question is whether the next step will fit: the room that is left
to the kernel's limit (control group, machine, resource limits), against what steps were seen to take on top of what is held
between them. A run that uses its budget to the last MiB, as it was planned to, is left alone.

- Soft mark: room for less than two such steps, or programs waiting for memory. Queues of batches shrink, garbage is
  collected, freed pages go back to the system, and where that is too little so much of memfit's own caches of data as is
  wanting, half of them where programs wait; at most every ten seconds, and ever more seldom where it does not help.
- Hard mark: room for less than one. After a release that does not help, a run that is kept takes a snapshot, and the plan is
  made smaller; where there is no smaller one and next to nothing is left, training ends with an error while the weights
  are whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras

from memfit import units
from memfit.backends.protocol import Backend
from memfit.budgeting import stalls
from memfit.budgeting.ceiling import Ceiling
from memfit.budgeting.host import host_ceiling
from memfit.errors import OutOfMemoryError
from memfit.guarding.leaks import Levels
from memfit.guarding.watch import Watcher

INTERVAL = 0.5
_RELEASE_INTERVAL = 10.0
_LONGEST_RELEASE_INTERVAL = 640.0
_PEAKS_FORGOTTEN = 0.98
"""The highest peak fades, look by look, so that one odd batch does not count for ever."""

_RESERVE_SHARE = 0.01
_LEAST_RESERVE = 16 * units.MIB
_STALLED = 0.10


class Attention(keras.callbacks.Callback):
    """Looks between batches.

    Args:
        watcher: Samples the peaks inside steps; running.
        backend: Asked to release.
        smaller: Called with the reason at the hard mark: puts a smaller plan on the model; False where there is none.
        log: Called with the kind and the sentence of an event.
        keep: Takes a snapshot, at the hard mark; gives whether there is one. The run's keeper then calls ``between_batches``,
            at a moment at which a snapshot may be taken. None where the run is not kept: it looks as a batch begins.
        hold_less: Called at the soft mark with bytes, or None for half: has queues of batches shrink for the rest of the run
            and caches in memory give back so much; gives what it came to, in sentences.
    """

    async_safe = True
    """Nothing is done at the end of a batch, so that Keras may go on calling the others as it likes."""

    def __init__(
        self,
        watcher: Watcher,
        backend: Backend,
        *,
        smaller: Callable[[str], bool],
        log: Callable[[str, str], None],
        keep: Callable[[], bool] | None = None,
        hold_less: Callable[[int | None], tuple[str, ...]] = lambda wanted: (),
    ) -> None:
        super().__init__()
        self._watcher = watcher
        self._backend = backend
        self._smaller = smaller
        self._log = log
        self._keep = keep
        self._hold_less = hold_less
        self._levels = Levels()
        self._num_batches = 0
        self._batches_per_epoch: int | None = None
        self._next_look = 0.0
        self._next_release = 0.0
        self._release_interval = _RELEASE_INTERVAL
        self._survived = 0
        self._level = 0
        self._need = 0
        self._start: Ceiling | None = None
        self._start_held = 0
        self._has_nothing_smaller = False
        self._data_gives = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._keep is None:
            self.between_batches()

    def between_batches(self) -> None:
        """Looks, where the last time is long enough ago.

        Raises:
            OutOfMemoryError: Next to nothing is left, and there is no smaller plan.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + INTERVAL
            self._look(now)
        self._num_batches += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._batches_per_epoch = self._batches_per_epoch or self._num_batches or None

    def on_train_end(self, logs: Any = None) -> None:
        growth = self._levels.growth()
        if growth is not None:
            self._log("leak", growth.text(self._batches_per_epoch))

    def _look(self, now: float) -> None:
        held = self._watcher.held()
        if self._level:
            self._survived = max(int(_PEAKS_FORGOTTEN * self._survived), self._watcher.take_window_peak())
        # What went through goes through again. A step's own bytes on top of what is held would count twice what an
        # allocator keeps of it, or has not given back yet.
        self._need = max(0, self._survived - held)
        self._level = held
        self._levels.add(self._num_batches, held)
        ceiling = host_ceiling()
        if self._start is None:
            self._start, self._start_held = ceiling, held
            return
        room, reserve = ceiling.bytes - held, max(_LEAST_RESERVE, int(_RESERVE_SHARE * ceiling.bytes))
        stalled = (stalls.stalled_share() or 0.0) >= _STALLED
        if room >= 2 * self._need + reserve and not stalled:
            return
        if now >= self._next_release:
            freed = self._released(2 * self._need + reserve - room, stalled=stalled)
            room += freed
            helped = freed >= reserve
            self._release_interval = (
                _RELEASE_INTERVAL if helped else min(2 * self._release_interval, _LONGEST_RELEASE_INTERVAL)
            )
            self._next_release = now + self._release_interval
        growing = reserve if self._levels.growth() is not None else 0
        if room < self._need + growing:
            room += self._given_back(2 * self._need + reserve - room)
        if room < self._need + growing:
            self._short(room, reserve)

    def _released(self, short: int, *, stalled: bool) -> int:
        """Gives back what can be given back; returns the bytes.

        Args:
            short: Bytes that are wanting.
            stalled: Whether programs wait for memory, however much seems to be left.
        """
        freed = self._hold(0)
        if stalled or freed < short:
            freed += self._given_back(None if stalled else short - freed)
        if freed >= units.MIB:
            self._log(
                "pressure", f"host memory ran short: {units.text(freed)} of caches and freed pages were given back"
            )
        return max(0, freed)

    def _given_back(self, wanted: int | None) -> int:
        """As ``_hold`` of caches, until they have no more to give."""
        return self._hold(wanted) if self._data_gives else 0

    def _hold(self, wanted: int | None) -> int:
        """Has the data hold less and pages go back; returns the bytes."""
        before = self._level
        sentences = self._hold_less(wanted)
        for sentence in sentences:
            self._log("pressure", f"host memory ran short: {sentence}")
        if wanted != 0:
            self._data_gives = bool(sentences)
            if not sentences:
                return 0
        self._backend.release()
        self._level = self._watcher.held()
        return before - self._level

    def _short(self, room: int, reserve: int) -> None:
        reason = self._what_grew(room)
        ends = room < reserve
        # Before the plan is changed, which takes memory itself.
        is_kept = self._keep is not None and (ends or not self._has_nothing_smaller) and self._keep()
        if not self._has_nothing_smaller:
            if self._smaller(reason):
                self._survived = 0
                self._level = 0
                return
            self._has_nothing_smaller = True
            self._log("pressure", f"{reason} No smaller plan is left")
        if not ends:
            return
        then = (
            "the same call in a new process goes on from its snapshot"
            if is_kept
            else "save it, and train on in a new process"
        )
        raise OutOfMemoryError(
            f"Training was ended before the kernel would kill this process. {reason} The model has the weights of the last "
            f"whole step: {then}."
        )

    def _what_grew(self, room: int) -> str:
        """The state of memory and what changed since the first look, in sentences."""
        assert self._start is not None
        own = self._level - self._start_held
        others = (self._start.bytes - self._start_held) - room - own
        growth = self._levels.growth()
        parts = [
            f"{units.text(max(0, room))} of host memory are left, a step takes up to {units.text(self._need)} more than "
            f"is held between steps; this process holds {units.text(self._level)}, {_signed(own)} since training began"
        ]
        if others > units.MIB:
            parts.append(f"others on the machine or in the control group took {units.text(others)}")
        if growth is not None:
            parts.append(growth.text(self._batches_per_epoch))
        return "; ".join(parts) + "."


def _signed(num_bytes: int) -> str:
    return f"{units.text(num_bytes)} {'more' if num_bytes >= 0 else 'less'}".replace("-", "")
