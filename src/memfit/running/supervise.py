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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memfit import budgeting
from memfit.budgeting.usage import Gauge
from memfit.errors import ArgumentError
from memfit.guarding import restarts, session
from memfit.reporting.console import say

_CHILD = Path(__file__).with_name("script_child.py")

_LOOK_SECONDS = 0.1
"""Between two looks at what the child holds."""

_AS_THEMSELVES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
"""Signals that a script ends by and this process then ends by too, so that who has started it sees what it would have."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to supervise.

    Attributes:
        command: The script and its arguments, or "-m", a module and its arguments.
        options: Of ``memfit.protect``, as JSON values.
        folder: For the session, kept until the script has ended with 0; None for one of this process' own.
        max_restarts: How often the script is started again at most.
        explain: Gives sentences about what in the script may take memory, asked where it has died for want of it for good.
    """

    command: Sequence[str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None
    max_restarts: int = 20
    explain: Callable[[], list[str]] | None = None


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
        ending = restarts.until_it_ends(folder, lambda: _run_once(folder, job), job.max_restarts, _tell)
        _explain(restarts.last_words(folder, ending), job)
    finally:
        if own:
            shutil.rmtree(folder, ignore_errors=True)
    if not own and ending.code == 0:
        _remove(folder)
    if -ending.code in _AS_THEMSELVES:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-ending.code])
        signal.signal(-ending.code, signal.SIG_DFL)
        os.kill(os.getpid(), -ending.code)
    return ending.code if ending.code >= 0 else 128 - ending.code


def _explain(words: str | None, job: Job) -> None:
    """Says what the script has died of, as far as that is known."""
    if words is not None:
        for sentence in [words, *(job.explain() if job.explain is not None else ())]:
            _tell(f"memfit: {sentence}")


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


def _run_once(folder: Path, job: Job) -> restarts.Ending:
    """One process of the script, from its start to its end."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
    before, room = restarts.kills(), budgeting.budget().host_bytes
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
        return restarts.Ending(process.returncode, peak, room, before, restarts.kills())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _tell(sentence: str) -> None:
    say(sentence, quiet=False)
