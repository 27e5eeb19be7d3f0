from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.budgeting import host

if TYPE_CHECKING:
    from conftest import Machine

GIB = 1024**3
RESERVE = 16 * GIB * host.RESERVED_PERCENT // 100
V2_MOUNT = ("/sys/fs/cgroup", "/", "cgroup2", "rw")


def test_machine_without_limits(machine: Machine) -> None:
    ceiling = host.host_ceiling(root=machine.root)
    assert ceiling.bytes == GIB + 10 * GIB - RESERVE
    assert "MemAvailable, less 3 % of the machine (492 MiB) left to the rest of it" in ceiling.source


def test_control_group_that_is_tighter_than_the_machine(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/job", limit=4 * GIB, used=3 * GIB, files=GIB)
    ceiling = host.host_ceiling(root=machine.root)
    assert ceiling.bytes == GIB + 2 * GIB
    assert "memory.max of this process's control group allows 4 GiB" in ceiling.source
    assert "1 GiB held by this process and 2 GiB free" in ceiling.source


def test_control_group_that_is_looser_than_the_machine(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/job", limit=64 * GIB, used=GIB)
    assert host.host_ceiling(root=machine.root).bytes == 11 * GIB - RESERVE


def test_neighbours_in_the_same_group_take_room_away(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/job", limit=6 * GIB, used=5 * GIB)
    assert host.host_ceiling(root=machine.root).bytes == GIB + GIB


def test_nothing_free_is_what_is_held(machine: Machine) -> None:
    machine.memory(total=16 * GIB, available=RESERVE // 2)
    assert host.host_ceiling(root=machine.root).bytes == GIB


def test_machine_without_proc_asks_psutil(tmp_path: Path) -> None:
    ceiling = host.host_ceiling(root=tmp_path)
    assert 0 < ceiling.bytes <= psutil.virtual_memory().total
    assert "as psutil reports it" in ceiling.source
    assert host.host_total(root=tmp_path).bytes == psutil.virtual_memory().total


@pytest.mark.parametrize("garbage", ["", "MemAvailable: lots kB\n", "MemAvailable\n", "\xff\n"])
def test_unreadable_meminfo_asks_psutil(machine: Machine, garbage: str) -> None:
    machine.write("proc/meminfo", garbage)
    assert "as psutil reports it" in host.host_ceiling(root=machine.root).source


def test_total_is_the_machines_or_the_least_limit(machine: Machine) -> None:
    assert host.host_total(root=machine.root).bytes == 16 * GIB
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/job", limit=4 * GIB, used=3 * GIB)
    assert host.host_total(root=machine.root).bytes == 4 * GIB


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_resource_limit_in_a_child(name: str) -> None:
    script = (
        "import resource\n"
        "from memfit.budgeting import host\n"
        f"resource.setrlimit(resource.{name}, (2**30, 2**30))\n"
        "ceiling = host.host_ceiling()\n"
        f"assert 0 < ceiling.bytes < 2**30, ceiling\n"
        f"assert 'the resource limit {name} is 1 GiB' in ceiling.source, ceiling\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@settings(max_examples=50, deadline=None)
@given(
    available=st.integers(0, 16 * GIB),
    limits=st.lists(st.integers(2**20, 2**40), min_size=2, max_size=2),
    used=st.integers(0, 2**36),
    share=st.floats(0, 1),
)
def test_a_tighter_limit_never_gives_more(
    machine_type: type[Machine], available: int, limits: list[int], used: int, share: float
) -> None:
    tight, loose = sorted(limits)
    ceilings = []
    for limit in (tight, loose):
        with tempfile.TemporaryDirectory() as folder:
            machine = machine_type(Path(folder)).memory(total=16 * GIB, available=available).holds(anonymous=GIB)
            machine.belongs_to("0::/job").mounts(V2_MOUNT)
            machine.group_2("sys/fs/cgroup/job", limit=limit, used=used, files=int(used * share))
            ceilings.append(host.host_ceiling(root=machine.root).bytes)
    assert 1 <= ceilings[0] <= ceilings[1] <= GIB + available
