"""Runs a command in a child process that cannot take more than a number of bytes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from memfit import units
from memfit.errors import ArgumentError, ProbeError
from memfit.probing.cages import CAGES, Cage
from memfit.probing.output import Output, feed

OnOutput = Callable[[str, str], None]
"""Takes "stdout" or "stderr", and a line without its end."""

_ENTRY = Path(__file__).with_name("entry.py")
_LINES_KEPT = 100
# Starting Python and joining a group takes some 20 ms.
_ENTRY_SECONDS = 30.0
# A process that got away may hold the pipe of the input open, and read nothing of it.
_END_SECONDS = 5.0
# How long after its end a child whose pipes somebody else holds open is noticed.
_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class CappedRun:
    """How a command under a cap ended.

    Attributes:
        returncode: What it ended with, in the shell's way: 0 to 255, and 128 + N for a child that signal N ended (137
            killed, 139 segmentation fault, 134 aborted).
        killed: Whether it, or a child of its own, was killed for memory: it does not fit. False for a child that was
            killed for its time or by somebody else, and for one that caught an allocation failure. Of a command that
            outlives its children ``returncode`` says how it ended.
        timed_out: Whether it was ended because its time was up.
        cap_bytes: The cap.
        peak_bytes: The most that it and its children held, reclaimable pages of files not counted, as far as the
            mechanism can tell; for one that was killed it is near the cap, and what it wanted was more.
        seconds: Wall time from start to end.
        mechanism: How the cap was held, in words.
        tail: The last lines of its output, both streams as they came.
    """

    returncode: int
    killed: bool
    timed_out: bool
    cap_bytes: int
    peak_bytes: int
    seconds: float
    mechanism: str
    tail: tuple[str, ...]

    def __str__(self) -> str:
        ending = f"ended with {self.returncode}"
        if self.killed:
            ending = "was killed for memory"
        elif self.timed_out:
            ending = "ran out of time"
        peak = f"peak {units.text(self.peak_bytes)} under a cap of {units.text(self.cap_bytes)}"
        return f"the child {ending} after {self.seconds:.1f} s: {peak} ({self.mechanism})"


@dataclasses.dataclass(frozen=True)
class Fed:
    """A command that reads something.

    Attributes:
        argv: The program and its arguments.
        input: What it reads from its standard input, through a pipe.
    """

    argv: Sequence[str]
    input: bytes


class _CannotJoinError(Exception):
    """The child could not put itself into its control group; another mechanism may do."""


def run_capped(
    argv: Sequence[str] | Fed,
    cap_bytes: int,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_output: OnOutput | None = None,
    cages: Sequence[Callable[[int], Cage | None]] = CAGES,
) -> CappedRun:
    """Runs a command under a memory cap, and waits for it.

    The command and everything that it starts have ended when this returns or raises, a ``KeyboardInterrupt`` included.
    The child's standard input is empty but for what ``Fed`` gives it. It is a session of its own, and the kernel's first
    choice when the machine runs out of memory. On Linux it also ends when the thread that called this does.

    Args:
        argv: The program and its arguments, or these with what it reads; a program without a folder is looked for in
            ``env``'s PATH.
        cap_bytes: What the command and its children may hold together, pages of files not counted.
        env: The child's environment, or None for this process's.
        timeout: Seconds after which it is ended; None waits for as long as it takes. Lines that were on their way then
            reach the tail only.
        on_output: Called in this thread with each line; what it raises ends the child and is raised here.
        cages: The mechanisms to try, in this order; ``cages.ONE_BY_ONE`` for a command that is to outlive its children.

    Raises:
        ArgumentError: The cap is not positive, or ``argv`` is empty.
        ProbeError: The program cannot be started.

    Example:
        >>> import sys
        >>> run = run_capped([sys.executable, "-c", "print('fits')"], 2**30)
        >>> run.returncode, run.killed, run.tail
        (0, False, ('fits',))
    """
    if cap_bytes <= 0:
        raise ArgumentError(f"`cap_bytes` must be positive. Received: cap_bytes={cap_bytes!r}.")
    fed = argv if isinstance(argv, Fed) else Fed(argv, b"")
    if not fed.argv:
        raise ArgumentError(f"`argv` must name a program. Received: argv={fed.argv!r}.")
    for make in cages:
        cage = make(cap_bytes)
        if cage is None:
            continue
        try:
            return _run(_Command(fed.argv, fed.input, cap_bytes, env, timeout, on_output), cage)
        except _CannotJoinError:
            continue
        finally:
            cage.remove()
    raise ProbeError(
        f"No way to hold a child to {units.text(cap_bytes)} works on this machine. Received: cages={tuple(cages)!r}. "
        "Leave `cages` out to have a watcher as the last resort."
    )


@dataclasses.dataclass(frozen=True)
class _Command:
    argv: Sequence[str]
    input: bytes
    cap_bytes: int
    env: Mapping[str, str] | None
    timeout: float | None
    on_output: OnOutput | None


def _run(command: _Command, cage: Cage) -> CappedRun:
    start = time.monotonic()
    tail: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
    with _started(command, cage) as (process, output):
        deadline = None if command.timeout is None else start + command.timeout
        with _sampled(cage):
            timed_out = not _follow(process, output, command.on_output, tail, deadline)
            cage.end()
        for stream, line in output.rest():
            _take(stream, line, None if timed_out else command.on_output, tail)
        returncode = _shell_style(process.wait())
        # The kernel's peak outlives the processes: this is what is known of a child too short for a sample.
        cage.sample()
        seconds = time.monotonic() - start
    return CappedRun(
        returncode=returncode,
        killed=cage.killed(returncode),
        timed_out=timed_out,
        cap_bytes=command.cap_bytes,
        peak_bytes=cage.peak_bytes,
        seconds=seconds,
        mechanism=cage.mechanism,
        tail=tuple(tail),
    )


def _follow(
    process: subprocess.Popen[str],
    output: Output,
    on_output: OnOutput | None,
    tail: collections.deque[str],
    deadline: float | None,
) -> bool:
    """Hands lines on until the child has ended; False if its time was up before."""
    while not _has_ended(process):
        left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
        if left <= 0:
            return False
        if output.ended:
            time.sleep(min(left, 0.01))
        for stream, line in output.lines(left):
            _take(stream, line, on_output, tail)
    return True


def _take(stream: str, line: str, on_output: OnOutput | None, tail: collections.deque[str]) -> None:
    tail.append(line)
    if on_output is not None:
        on_output(stream, line)


@contextlib.contextmanager
def _started(command: _Command, cage: Cage) -> Iterator[tuple[subprocess.Popen[str], Output]]:
    """The child, held by the cage, and its output. At the end, however it comes, nothing of both is left."""
    env = dict(os.environ if command.env is None else command.env)
    program = shutil.which(command.argv[0], path=env.get("PATH", os.defpath))
    if program is None:
        raise ProbeError(f"No such program. Received: argv={list(command.argv)!r}. Give its whole path.")
    reading, writing = os.pipe()
    try:
        argv = list(command.argv)
        if sys.platform == "linux":
            own = [str(writing), str(os.getpid()), cage.folder, os.path.abspath(program)]
            argv = [sys.executable, "-I", "-S", str(_ENTRY), *own, *argv]
        process = _spawn(argv, env, writing, has_input=bool(command.input))
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    output = Output(process)
    feeding = threading.Thread(target=feed, args=(process.stdin, command.input), name="memfit-stdin", daemon=True)
    if process.stdin is not None:
        feeding.start()
    try:
        cage.hold(process.pid)
        if sys.platform == "linux":
            _wait_for_entry(reading, command.argv)
        yield process, output
    finally:
        os.close(reading)
        cage.end()
        process.kill()
        output.discard()
        process.wait()
        if process.stdin is not None:
            feeding.join(_END_SECONDS)


def _spawn(argv: list[str], env: dict[str, str], writing: int, *, has_input: bool) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=(writing,) if sys.platform == "linux" else (),
        )
    except OSError as error:
        raise ProbeError(f"The child could not be started ({error}). Received: argv={argv!r}.") from error


def _wait_for_entry(reading: int, argv: Sequence[str]) -> None:
    """Waits until the child is in its cage and has become the command: then the last writer of the pipe is gone."""
    # A process forked elsewhere in this program at the wrong moment holds the pipe open too: not waited for forever.
    has_news, _, _ = select.select([reading], [], [], _ENTRY_SECONDS)
    message = os.read(reading, 4096) if has_news else b""
    step, _, reason = message.decode(errors="replace").partition(" ")
    if step == "join":
        raise _CannotJoinError(reason)
    if step:
        raise ProbeError(f"The child could not be started ({reason}). Received: argv={list(argv)!r}.")


@contextlib.contextmanager
def _sampled(cage: Cage) -> Iterator[None]:
    """Has the cage look at the child again and again, in a thread, so that a slow callback does not stop it."""
    running = threading.Lock()
    running.acquire()

    def sample() -> None:
        while not running.acquire(timeout=cage.interval):
            cage.sample()
        running.release()

    thread = threading.Thread(target=sample, name="memfit-cage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        running.release()
        thread.join()


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether the child has ended. It is not reaped where that can be helped: till then its group's number is its."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _shell_style(returncode: int) -> int:
    """``subprocess`` writes -9 for a child that signal 9 ended; shells and container logs write 128 + 9."""
    return 128 - returncode if returncode < 0 else returncode
