"""The supervisor: runs a script in a child process and, when that dies for want of memory, again with a smaller plan.

It imports no framework and holds little, so that it is there when the kernel has chosen the child. What the child has done is
in the session's folder (``guarding/session.py``): calls of ``fit`` that are done are not repeated, the interrupted one goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memfit import budgeting
from memfit.budgeting.usage import Gauge
from memfit.errors import ArgumentError
from memfit.guarding import session
from memfit.records import Plan
from memfit.reporting.console import say

_CHILD = Path(__file__).with_name("script_child.py")

_LOOK_SECONDS = 0.1
"""Between two looks at what the child holds."""

_PRESSED = 0.6
"""A child that has held this share of what there was for it may have died of it."""

_SMALLER = 0.75
"""Of the killed plan's step, what the next may take."""

_WITHOUT_PROGRESS = 3

_BY_MEMORY = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT)

_AS_THEMSELVES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
"""Signals that a script ends by and this process then ends by too, so that who has started it sees what it would have."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to supervise.

    Attributes:
        command: The script and its arguments, or "-m", a module and its arguments.
        options: Of ``memfit.protect``, as JSON values.
        folder: For the session, kept when the script is ended from outside; None for one of this process' own.
        max_restarts: How often the script is started again at most.
    """

    command: Sequence[str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None
    max_restarts: int = 20


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
        """Whether there are signs that memory was the cause."""
        return self.killed_after > self.killed_before or self.peak_bytes >= _PRESSED * self.room_bytes


def supervise(job: Job) -> int:
    """Runs the script until it ends by itself.

    Returns:
        Its exit code; 128 + N where signal N has ended it. By a signal like SIGTERM this process ends itself.

    Raises:
        ArgumentError: The session's folder is one of another command.
    """
    own = job.folder is None
    folder = Path(tempfile.mkdtemp(prefix="memfit-run-")) if job.folder is None else job.folder
    try:
        _open(folder, job)
        ending = _until_it_ends(folder, job)
    finally:
        if own:
            shutil.rmtree(folder, ignore_errors=True)
    if not own and -ending.code not in _AS_THEMSELVES and ending.code not in _BY_MEMORY:
        _remove(folder)
    if -ending.code in _AS_THEMSELVES:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-ending.code])
        signal.signal(-ending.code, signal.SIG_DFL)
        os.kill(os.getpid(), -ending.code)
    return ending.code if ending.code >= 0 else 128 - ending.code


def _open(folder: Path, job: Job) -> None:
    """Makes the session, or checks that it is one of the same command."""
    record = folder / "session.json"
    wanted = {"command": list(job.command), "folder": os.getcwd()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if record.exists() and json.loads(record.read_text()) != wanted:
            raise ArgumentError(
                f"The snapshots in the folder are of another command ({record.read_text()}). "
                f"Received: {' '.join(job.command)} in {os.getcwd()}. Pass another folder as --snapshots, or delete it."
            )
        session.write(record, wanted)
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(
            f"The folder for snapshots cannot be used ({error}). Received: --snapshots {str(folder)!r}. Pass another."
        ) from error


def _remove(folder: Path) -> None:
    """Removes a session that has come to its end, and nothing else that is in the folder."""
    for call in folder.glob("call-*"):
        shutil.rmtree(call, ignore_errors=True)
    for name in ("session.json", session.LIMITS):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _until_it_ends(folder: Path, job: Job) -> Ending:
    limits = _limits(folder)
    idle, reached = 0, _reached(folder)
    for restart in range(job.max_restarts + 1):
        may_fail = restart < job.max_restarts and idle < _WITHOUT_PROGRESS
        session.write(folder / session.LIMITS, {"calls": limits, "may_fail": may_fail})
        ending = _run_once(folder, job)
        call = _interrupted(folder)
        if not may_fail or not _for_memory(ending, call):
            return ending
        assert call is not None
        reached, before = _reached(folder), reached
        smaller = _smaller(call, limits.get(call.name, {}))
        idle = 0 if reached != before else idle + 1
        if smaller is not None:
            limits[call.name] = smaller
        for name in (session.FAILED, session.PLAN):
            (call / name).unlink(missing_ok=True)
        then = "with a smaller plan" if smaller is not None else "with the same plan"
        say(f"memfit: {_text(ending)}; the script is started again, {then}, from its last snapshot", quiet=False)
    return ending


def _for_memory(ending: Ending, call: Path | None) -> bool:
    """Whether a call of ``fit`` was interrupted for want of memory, or by a kill that nobody has explained."""
    if call is None or ending.code not in _BY_MEMORY:
        return False
    return ending.code == -signal.SIGKILL or ending.was_pressed


def _interrupted(folder: Path) -> Path | None:
    """The folder of the call that was training when the process ended."""
    return next((path.parent for path in sorted(folder.glob(f"call-*/{session.PLAN}"))), None)


def _reached(folder: Path) -> list[str]:
    """What there is of the session: it changes as the script gets on."""
    return sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("call-*/*.[nj][ps]*"))


def _limits(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / session.LIMITS).read_text())["calls"])
    except (OSError, ValueError, KeyError):
        return {}


def _smaller(call: Path, limit: dict[str, Any]) -> dict[str, Any] | None:
    """What the call may take next; None where its plan is the smallest that there is."""
    if (call / session.SMALLEST).exists():
        return None
    try:
        fields = json.loads((call / session.PLAN).read_text())
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


def _run_once(folder: Path, job: Job) -> Ending:
    """One process of the script, from its start to its end."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
    before, room = _kills(), budgeting.budget().host_bytes
    # Blocked, they wait for the loop below; the child takes the block off again.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [*signals, signal.SIGCHLD])
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                str(_CHILD),
                str(folder.absolute()),
                str(os.getpid()),
                json.dumps(job.options),
                *job.command,
            ]
        )
        peak = 0
        with Gauge(process.pid) as gauge:
            while process.poll() is None:
                peak = max(peak, gauge.read())
                found = signal.sigtimedwait([*signals, signal.SIGCHLD], _LOOK_SECONDS)
                # A terminal's Ctrl-C has reached the child by itself; what another process sends has not.
                if found is not None and found.si_signo != signal.SIGCHLD and found.si_code <= 0:
                    process.send_signal(found.si_signo)
        return Ending(process.returncode, peak, room, before, _kills())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0


def _text(ending: Ending) -> str:
    name = signal.Signals(-ending.code).name
    return f"the script's process was ended by {name}" + (" for want of memory" if ending.was_pressed else "")
