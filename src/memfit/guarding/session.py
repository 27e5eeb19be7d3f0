"""The calls of ``fit`` in a supervised process: those that are done are not repeated, the interrupted one goes on.

A session is a folder that outlives its processes. Each outermost call of ``fit`` has a folder in it, by its number in the
order of the script: the snapshots of the call; ``plan.json`` while it trains; ``report.json`` once it is done. The supervisor
(``supervise.py``) writes ``limits.json``, what each call may take after a kill. All of it is JSON and ``.npz``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memfit import budgeting
from memfit.errors import DoesNotFitError, OutOfMemoryError, SnapshotError
from memfit.records import Plan, RunReport

LIMITS = "limits.json"
PLAN = "plan.json"
REPORT = "report.json"
FAILED = "out-of-memory"
SMALLEST = "smallest"
ATTEMPT = "attempt.json"


@dataclasses.dataclass(frozen=True)
class Limit:
    """What one call of ``fit`` may take, after a process was killed in it.

    Attributes:
        budget: Bytes, or None.
        micro_batch_size: Where nothing was predicted, or None.
        may_fail: Whether the supervisor starts the process again if it ends.
        attempt: Whether what is not predicted to fit may be attempted all the same.
    """

    budget: int | None = None
    micro_batch_size: int | None = None
    may_fail: bool = True
    attempt: bool = False


class Session:
    """The calls of one process.

    Args:
        folder: Of the session.

    Attributes:
        folder: Of the session.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_calls = 0
        self._inside = threading.local()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def entered(self) -> Iterator[Path | None]:
        """Gives the folder of the next call; None inside of another call, which a callback has made."""
        if getattr(self._inside, "now", False):
            yield None
            return
        with self._lock:
            number, self._num_calls = self._num_calls, self._num_calls + 1
        self._inside.now = True
        try:
            yield self.folder / f"call-{number:03d}"
        finally:
            self._inside.now = False

    def limit(self, call: Path) -> Limit:
        """What the supervisor allows a call."""
        try:
            limits = json.loads((self.folder / LIMITS).read_text())
        except FileNotFoundError:
            return Limit()
        may_fail = bool(limits["may_fail"])
        return Limit(**{**limits["calls"].get(call.name, {}), "may_fail": may_fail, "attempt": may_fail})


_current: Session | None = None


def begin(folder: Path) -> Session:
    """From here on this process' calls of ``fit`` belong to a session."""
    global _current
    _current = Session(folder)
    return _current


def current() -> Session | None:
    """The session of this process, or None where nobody supervises it."""
    return _current


Run = Callable[[Limit], Any]
"""Trains under a limit, kept in the call's folder; returns the History."""


def supervised(session: Session, call: Path, run: Run) -> Any:
    """One outermost call of ``fit``.

    Where the process runs out of memory and the supervisor will start it again, it ends here, as if the kernel had killed it.

    Args:
        session: The session.
        call: The folder of the call.
        run: Trains.

    Returns:
        The History.
    """
    limit = session.limit(call)
    note_plan(call, None)
    try:
        history = _run(call, run, limit)
    except BaseException as error:
        if isinstance(error, OutOfMemoryError) and limit.may_fail:
            (call / FAILED).touch()
            _end()
        (call / PLAN).unlink(missing_ok=True)
        raise
    report = getattr(history, "memfit", None)
    if report is not None and not (call / REPORT).exists():
        write(call / REPORT, json.loads(report.to_json()))
    for name in (PLAN, ATTEMPT):
        (call / name).unlink(missing_ok=True)
    return history


def _run(call: Path, run: Run, limit: Limit) -> Any:
    attempted = _attempt(call)
    if attempted is not None and has_failed_attempt(call):
        # Not planned again: that takes memory just where there was too little.
        raise DoesNotFitError(_attempted_text(attempted["refusal"], attempted["what"]))
    try:
        return _run_limited(call, run, limit)
    except DoesNotFitError as refusal:
        if attempted is not None:
            refusal.args = (_attempted_text(str(refusal), attempted["what"]),)
        raise
    except SnapshotError as error:
        print(f"memfit: {call.name} is trained anew: {error}", file=sys.stderr, flush=True)
        forget(call)
        return run(limit)


def _attempted_text(refusal: str, what: str) -> str:
    return f"{refusal} It was attempted all the same, as the process is supervised ({what}), and was ended for want of memory."


def _run_limited(call: Path, run: Run, limit: Limit) -> Any:
    if limit.budget is None and limit.micro_batch_size is None:
        return run(limit)
    try:
        return run(dataclasses.replace(limit, attempt=False))
    except DoesNotFitError:
        # There is no smaller plan. What was killed may have grown by something else, which is gone with the process.
        (call / SMALLEST).touch()
        return run(Limit(may_fail=limit.may_fail, attempt=limit.attempt))


def forget(call: Path) -> None:
    """Removes what is known of a call and of all after it: the script has taken another way."""
    for folder in call.parent.glob("call-*"):
        if folder.name >= call.name:
            for path in folder.iterdir():
                if folder != call or path.name != PLAN:
                    path.unlink(missing_ok=True)


def note_plan(call: Path, plan: Plan | None) -> None:
    """Tells the supervisor what is about to be trained with (None: not known yet), and what the process holds before."""
    call.mkdir(parents=True, exist_ok=True)
    held = budgeting.reading().host_bytes
    write(call / PLAN, {"held": held, "plan": None if plan is None else json.loads(plan.to_json())})


def note_attempt(call: Path, what: str, refusal: str) -> None:
    """Notes, before it begins, that what is not predicted to fit is attempted: a process is not spent on it twice in vain.

    Args:
        call: The folder of the call.
        what: The arrangement, in words.
        refusal: Why nothing is predicted to fit.
    """
    write(call / ATTEMPT, {"what": what, "refusal": refusal, "snapshots": _snapshots(call)})


def has_failed_attempt(call: Path) -> bool:
    """Whether an attempt has left no snapshot to go on from that was not there before it."""
    attempted = _attempt(call)
    return attempted is not None and attempted["snapshots"] == _snapshots(call)


def _attempt(call: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((call / ATTEMPT).read_text()))
    except FileNotFoundError:
        return None


def _snapshots(call: Path) -> list[str]:
    return sorted(path.name for path in call.glob("snapshot-*.npz"))


def report(call: Path) -> RunReport | None:
    """The report of a call that is done; None where it is not known."""
    try:
        return RunReport.from_json((call / REPORT).read_text())
    except FileNotFoundError:
        return None


def write(path: Path, document: Any) -> None:
    """Writes JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document))
    os.replace(partial, path)


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
