"""Real children under real caps, through every mechanism that this machine has."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from memfit import units
from memfit.budgeting import cgroup
from memfit.errors import ArgumentError, ProbeError
from memfit.probing.cages import ONE_BY_ONE, GroupCage, WatchedCage
from memfit.probing.capped import CappedRun, Fed, run_capped

MIB = 1024**2
CAP = 192 * MIB
# Takes its argument in MiB, touches every page, says so, and holds it until it is sampled.
TAKE = """
import sys, time
block = bytearray(int(sys.argv[1]) * 2**20)
for offset in range(0, len(block), 4096):
    block[offset] = 1
print("took it", flush=True)
time.sleep(0.1)
"""
# Takes 16 MiB at a time, slowly enough to be looked at in between.
CREEP = """
import sys, time
blocks = []
for _ in range(int(sys.argv[1]) // 16):
    blocks.append(b"x" * (16 * 2**20))
    time.sleep(0.01)
print("took it", flush=True)
"""

Make = Callable[[int], Any]
MECHANISMS: dict[str, Make] = {
    "cgroup v1": GroupCage.version_1,
    "cgroup v2": GroupCage.version_2,
    "watcher": WatchedCage.anywhere,
}


def take(mebibytes: int, script: str = TAKE) -> list[str]:
    return [sys.executable, "-c", script, str(mebibytes)]


def group_folders(pid: int) -> list[Path]:
    """The groups that a process made and did not remove."""
    return [path for group in cgroup.groups() for level in group.levels[:2] for path in level.glob(f"memfit-{pid}-*")]


def memfit_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("memfit-")]


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that its new parent has not reaped yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(params=MECHANISMS)
def make(request: pytest.FixtureRequest) -> Make:
    """Each mechanism in turn; one that cannot be had on this machine is skipped."""
    mechanism = MECHANISMS[request.param]
    cage = mechanism(CAP)
    if cage is None:
        pytest.skip(f"no {request.param} memory group can be made on this machine")
    cage.remove()
    return mechanism


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test leaves no child, no thread, no folder and no open file."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    yield
    assert not psutil.Process().children()
    assert not memfit_threads()
    assert not group_folders(os.getpid())
    gc.collect()
    assert not files or len(os.listdir("/proc/self/fd")) == files


def test_child_within_its_cap_finishes(make: Make) -> None:
    run = run_capped(take(64), CAP, cages=[make])
    assert (run.returncode, run.killed, run.timed_out) == (0, False, False)
    assert run.tail == ("took it",)
    assert 64 * MIB <= run.peak_bytes < 110 * MIB
    assert run.seconds > 0


@pytest.mark.parametrize("name", ["cgroup v1", "cgroup v2"])
def test_kernel_remembers_the_peak_of_a_child_that_was_never_looked_at(name: str) -> None:
    def seldom(cap_bytes: int) -> Any:
        cage = MECHANISMS[name](cap_bytes)
        if cage is not None:
            cage.interval = 3600
        return cage

    try:
        run = run_capped(take(64), CAP, cages=[seldom])
    except ProbeError:
        pytest.skip(f"no {name} memory group can be made on this machine")
    assert run.peak_bytes >= 64 * MIB


@pytest.mark.parametrize("script", [TAKE, CREEP], ids=["at once", "slowly"])
def test_child_over_its_cap_is_killed(make: Make, script: str) -> None:
    run = run_capped(take(1024, script), CAP, cages=[make])
    assert (run.returncode, run.killed, run.timed_out) == (137, True, False)
    assert run.tail == ()
    assert run.peak_bytes > 0.9 * CAP
    assert "killed for memory" in str(run)


def test_grandchild_over_the_cap_is_killed_with_the_child_and_counts(make: Make) -> None:
    script = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[2], sys.argv[1]]) != 0)"
    run = run_capped([sys.executable, "-c", script, "1024", CREEP], CAP, cages=[make])
    assert run.killed
    assert run.returncode != 0


def test_pages_shared_after_a_fork_count_once(make: Make) -> None:
    script = """
import os, time
block = b"x" * (100 * 2**20)
pids = [os.fork() for _ in range(1)]
time.sleep(0.4)
if pids[0]:
    os.waitpid(pids[0], 0)
"""
    run = run_capped([sys.executable, "-c", script], CAP, cages=[make])
    assert (run.returncode, run.killed) == (0, False)
    assert 100 * MIB < run.peak_bytes < 150 * MIB


def test_pages_of_files_do_not_count(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "large"
    script = """
import sys, mmap
with open(sys.argv[1], "wb") as file:
    for _ in range(48):
        file.write(b"x" * 2**23)
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
    print(sum(pages[offset] for offset in range(0, len(pages), 4096)) > 0)
"""
    run = run_capped([sys.executable, "-c", script, str(file)], CAP, cages=[make])
    assert file.stat().st_size == 2 * CAP
    assert (run.returncode, run.killed, run.tail) == (0, False, ("True",))


@pytest.mark.parametrize("code", [1, 3, 125, 126, 127])
def test_exit_code_is_handed_on(make: Make, code: int) -> None:
    run = run_capped([sys.executable, "-c", f"raise SystemExit({code})"], CAP, cages=[make])
    assert (run.returncode, run.killed, run.timed_out) == (code, False, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_child_that_a_signal_ends_did_not_die_of_the_cap(make: Make, number: int) -> None:
    script = (
        f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {int(number)})"
    )
    run = run_capped([sys.executable, "-c", script], CAP, cages=[make])
    assert (run.returncode, run.killed) == (128 + number, False)


def test_time_that_is_up(make: Make) -> None:
    run = run_capped(["sleep", "600"], CAP, timeout=0.3, cages=[make])
    assert (run.returncode, run.killed, run.timed_out) == (137, False, True)
    assert "ran out of time" in str(run)


def test_time_that_is_up_for_a_child_that_never_stops_talking(make: Make) -> None:
    # A callback that is slower than the child keeps the queue full.
    run = run_capped(["yes"], CAP, timeout=2, on_output=lambda *_: time.sleep(0.0002), cages=[make])
    assert run.timed_out
    assert run.tail == ("y",) * 100


def test_everything_that_the_child_started_ends_with_it(make: Make) -> None:
    script = "sleep 600 & echo $!; setsid sleep 600 & echo $!; nohup sleep 600 >/dev/null 2>&1 & echo $!; sleep 0.4"
    run = run_capped(["sh", "-c", script], CAP, cages=[make])
    assert run.returncode == 0
    assert len(run.tail) == 3
    wait_until(lambda: all(ended(int(pid)) for pid in run.tail))


def test_what_a_child_left_behind_at_once_ends_too(make: Make) -> None:
    run = run_capped(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], CAP, cages=[make])
    wait_until(lambda: ended(int(run.tail[0])))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_in_the_callback_ends_the_child(make: Make, error: type[BaseException]) -> None:
    pids: list[int] = []

    def fail(stream: str, line: str) -> None:
        pids.append(int(line))
        raise error

    with pytest.raises(error):
        run_capped(["sh", "-c", "echo $$; yes"], CAP, on_output=fail, cages=[make])
    assert len(pids) == 1
    wait_until(lambda: ended(pids[0]))


def test_interrupt_while_waiting_ends_the_child(make: Make, request: pytest.FixtureRequest) -> None:
    # A shell has what it runs in the background ignore interrupts, this test's process included.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    timers: list[threading.Timer] = []

    def interrupt_soon(stream: str, line: str) -> None:
        timers.append(threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)))
        timers[0].start()

    with pytest.raises(KeyboardInterrupt):
        run_capped(["sh", "-c", "echo up; exec sleep 600"], CAP, timeout=30, on_output=interrupt_soon, cages=[make])
    timers[0].join()


def test_lines_come_as_they_are_written_in_the_callers_thread(make: Make) -> None:
    script = """
import sys, time
print("first", flush=True)
print("to the other stream", file=sys.stderr, flush=True)
print("50 %\\r100 %\\r", end="", flush=True)
input_is_empty = sys.stdin.read() == ""
print(input_is_empty, "\\udcff".encode("utf-8", "surrogatepass")[:1], flush=True)
sys.stdout.buffer.write(b"\\xff no end of line")
"""
    lines: list[tuple[str, str]] = []
    threads: set[threading.Thread] = set()

    def keep(stream: str, line: str) -> None:
        lines.append((stream, line))
        threads.add(threading.current_thread())

    run = run_capped([sys.executable, "-c", script], CAP, on_output=keep, cages=[make])
    assert run.returncode == 0
    assert [line for stream, line in lines if stream == "stderr"] == ["to the other stream"]
    assert [line for stream, line in lines if stream == "stdout"] == [
        "first",
        "50 %",
        "100 %",
        "True b'\\xed'",
        "� no end of line",
    ]
    assert threads == {threading.current_thread()}
    assert sorted(run.tail) == sorted(line for _, line in lines)


def test_no_line_is_lost_and_the_tail_is_the_last_hundred(make: Make) -> None:
    lines: list[str] = []
    script = "for number in range(20000): print(number)"
    run = run_capped([sys.executable, "-c", script], CAP, on_output=lambda _, line: lines.append(line), cages=[make])
    assert lines == [str(number) for number in range(20000)]
    assert run.tail == tuple(lines[-100:])


def test_slow_callback_does_not_stop_the_cap(make: Make) -> None:
    run = run_capped(
        take(1024, "print('start', flush=True)" + CREEP), CAP, on_output=lambda *_: time.sleep(1), cages=[make]
    )
    assert run.killed


def test_environment_and_arguments_are_the_childs(make: Make) -> None:
    script = "import os, sys; print(sorted(set(os.environ) - {'LC_CTYPE'}), sys.argv[1:])"
    env = {"MINE": "1", "PATH": os.environ["PATH"]}
    run = run_capped([sys.executable, "-c", script, "a b", "", "$HOME"], CAP, env=env, cages=[make])
    assert run.tail == ("['MINE', 'PATH'] ['a b', '', '$HOME']",)


def test_program_is_looked_for_in_the_childs_path(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert run_capped(["only-here"], CAP, env={"PATH": str(tmp_path)}, cages=[make]).tail == ("found",)
    with pytest.raises(ProbeError, match="No such program"):
        run_capped(["only-here"], CAP, cages=[make])


def test_program_that_cannot_be_run(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/nowhere/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(ProbeError, match="could not be started"):
        run_capped([str(program)], CAP, cages=[make])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_child_is_the_kernels_first_victim_and_takes_broken_pipes_as_usual(make: Make) -> None:
    run = run_capped(["sh", "-c", "cat /proc/self/oom_score_adj; grep SigIgn /proc/self/status"], CAP, cages=[make])
    score, ignored = run.tail
    assert score == "1000"
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_child_ends_with_a_program_that_is_killed_and_the_next_one_cleans_up(make: Make) -> None:
    name = next(name for name, mechanism in MECHANISMS.items() if mechanism == make)
    script = (
        "from memfit.probing.capped import run_capped\n"
        "from memfit.probing.cages import GroupCage, WatchedCage\n"
        "v1, v2, watcher = GroupCage.version_1, GroupCage.version_2, WatchedCage.anywhere\n"
        "makes = {'cgroup v1': v1, 'cgroup v2': v2, 'watcher': watcher}\n"
        "say = lambda stream, line: print(line, flush=True)\n"
        f"run_capped(['sh', '-c', 'echo $$; exec sleep 600'], 2**28, on_output=say, cages=[makes[{name!r}]])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not ended(pid)
        parent.kill()
    wait_until(lambda: ended(pid))
    # What the killed program left, an empty group, goes when the next one is made.
    wait_until(lambda: run_capped(["true"], CAP, cages=[make]).returncode == 0 and not group_folders(parent.pid))


@pytest.mark.parametrize("name", ["cgroup v1", "cgroup v2"])
def test_budget_of_a_process_in_a_group_is_the_groups(name: str) -> None:
    mechanism = MECHANISMS[name]
    cage = mechanism(CAP)
    if cage is None:
        pytest.skip(f"no {name} memory group can be made on this machine")
    cage.remove()
    script = "from memfit import budgeting; found = budgeting.budget(); print(found.host_bytes); print(found.source)"
    run = run_capped([sys.executable, "-c", script], CAP, cages=[mechanism])
    host_bytes, source = run.tail
    assert 0.8 * CAP < int(host_bytes) <= CAP
    assert f"{units.text(CAP)}, pages of files not counted" in source


def test_first_mechanism_that_can_be_made_is_taken() -> None:
    run = run_capped(["true"], CAP)
    assert run.returncode == 0
    assert run.mechanism in {
        "cgroup v1 memory limit",
        "cgroup v2 memory.max",
        "watcher that kills the child at the cap",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="control groups")
def test_group_that_the_child_cannot_join_gives_way_to_the_next_mechanism(tmp_path: Path) -> None:
    class Unjoinable(WatchedCage):
        folder = str(tmp_path / "nothing here")
        mechanism = "cannot be joined"

    run = run_capped(["true"], CAP, cages=[Unjoinable, lambda _: None, WatchedCage])
    assert run.mechanism == WatchedCage.mechanism
    with pytest.raises(ProbeError, match="No way to hold a child to 192 MiB"):
        run_capped(["true"], CAP, cages=[Unjoinable])


@pytest.mark.parametrize("cap", [0, -1])
def test_cap_must_be_positive(cap: int) -> None:
    with pytest.raises(ArgumentError, match=f"cap_bytes={cap}"):
        run_capped(["true"], cap)


def test_command_must_not_be_empty() -> None:
    with pytest.raises(ArgumentError, match=r"argv=\[\]"):
        run_capped([], CAP)


def test_several_at_once_do_not_disturb_one_another(make: Make) -> None:
    runs: dict[int, CappedRun] = {}
    sizes = (16, 64, 1024)

    def run(size: int) -> None:
        runs[size] = run_capped(take(size), CAP, cages=[make])

    threads = [threading.Thread(target=run, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [runs[size].killed for size in sizes] == [False, False, True]


@pytest.mark.parametrize("make", ONE_BY_ONE, ids=["version_1", "version_2", "watched"])
def test_a_command_that_outlives_its_children_does_so(make: Make) -> None:
    if (cage := make(CAP)) is None:
        pytest.skip("this machine has no such mechanism")
    cage.remove()
    child = f"block = bytearray({2 * CAP}); import time; time.sleep(30)"
    outlives = (
        "import subprocess, sys\n"
        f"print(subprocess.run([sys.executable, '-I', '-S', '-c', {child!r}]).returncode, flush=True)\n"
        "sys.exit(5)"
    )
    run = run_capped([sys.executable, "-I", "-S", "-c", outlives], CAP, cages=[make])
    assert (run.returncode, run.killed, run.tail) == (5, True, ("-9",))


def test_child_reads_what_it_is_fed(make: Make) -> None:
    data = os.urandom(2**20)
    script = "import sys, zlib; print(zlib.crc32(sys.stdin.buffer.read()))"
    run = run_capped(Fed([sys.executable, "-c", script], data), CAP, cages=[make])
    assert run.tail == (str(zlib.crc32(data)),)


def test_child_that_reads_nothing_of_its_input_ends_as_ever(make: Make) -> None:
    assert run_capped(Fed(["true"], bytes(2**20)), CAP, cages=[make]).returncode == 0


def test_child_that_is_fed_nothing_reads_nothing(make: Make) -> None:
    assert run_capped(["cat"], CAP, cages=[make]).returncode == 0
