"""When a process that trains has died: whether for want of memory, whether to start it again, and with which plan."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit import units
from memfit.guarding import session
from memfit.records import Plan

_PRESSED = 0.6
"""A child that has held this share of what there was for it may have died of it."""

_SMALLER = 0.75
"""Of the killed plan's step, what the next may take."""

_WITHOUT_PROGRESS = 3

BY_MEMORY = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT)
"""How processes die that ran out of memory, as ``subprocess`` writes it."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        code: As ``subprocess`` writes it: negative for a signal.
        peak_bytes: The most that it was seen to hold.
        room_bytes: What there was for it when it started.
        killed_before, killed_after: Processes that the kernel has killed for memory, before the child and after it.
    """

    code: int
    peak_bytes: int
    room_bytes: int
    killed_before: int
    killed_after: int

    @property
    def was_pressed(self) -> bool:
        """Whether it held so much that memory may have been the cause. The kernel's count is the whole machine's."""
        return self.peak_bytes >= _PRESSED * self.room_bytes

    @property
    def counted(self) -> bool:
        """Whether the kernel has killed for memory meanwhile, somewhere on the machine."""
        return self.killed_after > self.killed_before

    @property
    def for_memory(self) -> bool:
        """Whether a kill or a crash is to be taken for one for want of memory."""
        return self.code == -signal.SIGKILL or (self.code in BY_MEMORY and self.was_pressed)


def until_it_ends(
    folder: Path, run_once: Callable[[], Ending], max_restarts: int, tell: Callable[[str], None]
) -> Ending:
    """Runs a process, and again as long as it dies for want of memory and there is hope.

    Args:
        folder: Of the session.
        run_once: Runs one process to its end.
        max_restarts: How often it is started again at most.
        tell: Takes the sentence for a person.
    """
    limits = _limits(folder)
    for noted in folder.glob(f"call-*/{session.ATTEMPT}"):  # of an earlier command, which had another room
        noted.unlink()
    idle, reached = 0, _reached(folder)
    for restart in range(max_restarts + 1):
        may_fail = restart < max_restarts and idle < _WITHOUT_PROGRESS
        session.write(folder / session.LIMITS, {"calls": limits, "may_fail": may_fail})
        ending = run_once()
        call = _interrupted(folder)
        if not may_fail or not _for_memory(ending, call):
            return ending
        assert call is not None
        reached, before = _reached(folder), reached
        # A kill that nothing explains may be an operator's: the plan is blamed for it only if nothing was done since the last.
        blamed = (call / session.FAILED).exists() or ending.was_pressed or ending.counted or reached == before
        smaller = _smaller(call, limits.get(call.name, {})) if blamed else None
        idle = 0 if reached != before or smaller is not None else idle + 1
        if smaller is not None:
            limits[call.name] = smaller
        for name in (session.FAILED, session.PLAN):
            (call / name).unlink(missing_ok=True)
        tell(f"memfit: {_text(ending)}; it is started again, {_then(call, smaller)}")
    return ending


def last_words(folder: Path, ending: Ending) -> str | None:
    """What a process that is not started again has died of; None where that was not for want of memory, as far as is seen."""
    if not ending.for_memory or not (ending.was_pressed or ending.counted):
        return None
    there = f"{_text(ending)}; there were {units.text(ending.room_bytes)} for it"
    if _interrupted(folder) is not None:
        return f"{there}, and nothing smaller is left to try"
    return f"{there}. It was outside of fit, evaluate and predict: what the program makes there by itself is not planned for"


def _for_memory(ending: Ending, call: Path | None) -> bool:
    """Whether a call of ``fit`` was interrupted for want of memory, or by a kill that nobody has explained."""
    return call is not None and ending.for_memory


def _interrupted(folder: Path) -> Path | None:
    """The folder of the call that was training when the process ended."""
    return next((path.parent for path in sorted(folder.glob(f"call-*/{session.PLAN}"))), None)


def _reached(folder: Path) -> list[str]:
    """What there is of the session: it changes as the script gets on."""
    names = ("snapshot-*.npz", session.REPORT)
    return sorted(f"{path.parent.name}/{path.name}" for name in names for path in folder.glob(f"call-*/{name}"))


def _limits(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / session.LIMITS).read_text())["calls"])
    except (OSError, ValueError, KeyError):
        return {}


def _smaller(call: Path, limit: dict[str, Any]) -> dict[str, Any] | None:
    """What the call may take next; None where its plan is the smallest that there is."""
    if (call / session.SMALLEST).exists() or session.has_failed_attempt(call):
        return None
    try:
        fields = json.loads((call / session.PLAN).read_text())
        if fields["plan"] is None:  # killed before there was one
            return None
        plan, held = Plan.from_json(json.dumps(fields["plan"])), int(fields["held"])
    except (OSError, ValueError, KeyError):
        return None
    if plan.peak is not None:
        highest = min(plan.peak.upper, limit.get("budget") or plan.peak.upper, plan.budget.limiting_bytes)
        return {
            "budget": max(1, int(held + _SMALLER * (highest - held)) if highest > held else int(_SMALLER * highest))
        }
    size = plan.micro_batch_size or plan.batch_size
    return {"micro_batch_size": -(-size // 2)} if size is not None and size > 1 else None


def kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0


def _then(call: Path, smaller: dict[str, Any] | None) -> str:
    """What the next process is to do."""
    if session.has_failed_attempt(call):
        return "as what was attempted does not fit, to say so"
    return f"with {'a smaller' if smaller is not None else 'the same'} plan, from its last snapshot"


def _text(ending: Ending) -> str:
    name = signal.Signals(-ending.code).name
    counted = ", and the kernel has killed for memory meanwhile" if ending.counted else ""
    return f"the training process was ended by {name} (it held {units.text(ending.peak_bytes)}{counted})"
