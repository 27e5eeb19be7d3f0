"""Control groups made of files, for what this machine's kernel does not offer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from memfit.probing.cages import GroupCage

MIB = 1024**2
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    """A session of a user whose service hands the memory controller down; the folder of that service."""
    write(tmp_path / "proc/self/cgroup", "0::/user/service/session.scope\n")
    write(tmp_path / "proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    service = tmp_path / "sys/fs/cgroup/user/service"
    write(service / "cgroup.subtree_control", "cpu memory pids\n")
    write(service / "session.scope/cgroup.subtree_control", "\n")
    return service


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    write(tmp_path / "proc/self/cgroup", "4:memory:/jobs/7\n")
    write(tmp_path / "proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    own = tmp_path / "sys/fs/cgroup/memory/jobs/7"
    own.mkdir(parents=True)
    return own


def test_version_2_stands_beside_the_own_group(version_2: Path, tmp_path: Path) -> None:
    cage = GroupCage.version_2(64 * MIB, root=tmp_path)
    assert cage is not None
    folder = Path(cage.folder)
    assert folder.parent == version_2
    assert (folder / "memory.max").read_text() == str(64 * MIB)
    assert cage.mechanism == "cgroup v2 memory.max"


def test_version_2_stands_below_a_group_that_hands_the_controller_down(version_2: Path, tmp_path: Path) -> None:
    write(version_2 / "session.scope/cgroup.subtree_control", "memory\n")
    cage = GroupCage.version_2(64 * MIB, root=tmp_path)
    assert cage is not None
    assert Path(cage.folder).parent == version_2 / "session.scope"


def test_version_2_without_the_memory_controller_cannot_be_made(version_2: Path, tmp_path: Path) -> None:
    write(version_2 / "cgroup.subtree_control", "cpu pids\n")
    assert GroupCage.version_2(64 * MIB, root=tmp_path) is None
    assert not list(version_2.rglob("memfit-*"))


def test_version_1_stands_below_the_own_group(version_1: Path, tmp_path: Path) -> None:
    cage = GroupCage.version_1(64 * MIB, root=tmp_path)
    assert cage is not None
    folder = Path(cage.folder)
    assert folder.parent == version_1
    assert (folder / "memory.limit_in_bytes").read_text() == str(64 * MIB)
    # Files that this kernel does not have are not made up.
    assert [path.name for path in folder.iterdir()] == ["memory.limit_in_bytes"]


@pytest.mark.parametrize("version", [GroupCage.version_1, GroupCage.version_2])
def test_no_groups_no_cage(version: object, tmp_path: Path) -> None:
    assert callable(version)
    assert version(MIB, root=tmp_path) is None


def test_what_a_killed_program_left_is_removed_and_what_a_living_one_uses_is_not(
    version_1: Path, tmp_path: Path
) -> None:
    dead, living, other = (version_1 / name for name in ("memfit-999999999-ab", f"memfit-{os.getpid()}-ab", "memfit-x"))
    for folder in (dead, living, other):
        folder.mkdir()
    assert GroupCage.version_1(MIB, root=tmp_path) is not None
    assert [folder.exists() for folder in (dead, living, other)] == [False, True, True]


def group(folder: Path, version: int, *, peak: int, used: int, files: int) -> None:
    names = (
        ("memory.max_usage_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.peak", "memory.current")
    )
    write(folder / names[0], str(peak))
    write(folder / names[1], str(used))
    write(folder / "memory.stat", f"inactive_file {files}\nactive_file 0\n")


@pytest.mark.parametrize("version", [1, 2])
def test_peak_is_the_kernels_less_pages_of_files(tmp_path: Path, version: int) -> None:
    cage = GroupCage(tmp_path, version, "")
    group(tmp_path, version, peak=50, used=50, files=0)
    cage.sample()
    assert cage.peak_bytes == 50
    # 100 bytes of files came in between: at least the lesser count of them was there at the peak.
    group(tmp_path, version, peak=180, used=180, files=100)
    cage.sample()
    assert cage.peak_bytes == 180
    cage = GroupCage(tmp_path, version, "")
    cage.sample()
    group(tmp_path, version, peak=300, used=220, files=120)
    cage.sample()
    assert cage.peak_bytes == 200


def test_version_2_old_peak_counts_once(tmp_path: Path) -> None:
    cage = GroupCage(tmp_path, 2, "")
    group(tmp_path, 2, peak=300, used=300, files=100)
    cage.sample()
    assert cage.peak_bytes == 300
    cage.peak_bytes = 0
    group(tmp_path, 2, peak=300, used=150, files=100)
    cage.sample()
    assert cage.peak_bytes == 50


def test_kill_is_read_from_the_groups_counter(tmp_path: Path) -> None:
    write(tmp_path / "memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 0\noom_group_kill 0\n")
    assert not GroupCage(tmp_path, 2, "").killed(137)
    write(tmp_path / "memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n")
    assert GroupCage(tmp_path, 2, "").killed(137)
    write(tmp_path / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert GroupCage(tmp_path, 1, "").killed(1)


def test_kill_on_a_kernel_without_the_counter(tmp_path: Path) -> None:
    write(tmp_path / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    cage = GroupCage(tmp_path, 1, "")
    write(tmp_path / "memory.failcnt", "0\n")
    assert not cage.killed(137)
    write(tmp_path / "memory.memsw.failcnt", "3\n")
    assert cage.killed(137)
    assert not cage.killed(1)


def test_processes_of_other_namespaces_and_this_one_are_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        write(tmp_path / "cgroup.procs", "")

    monkeypatch.setattr(os, "kill", kill)
    write(tmp_path / "cgroup.procs", f"0\n1\n{os.getpid()}\n4242\n")
    GroupCage(tmp_path, 1, "").end()
    assert killed == [(4242, signal.SIGKILL)]
