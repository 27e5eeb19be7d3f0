from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memfit.budgeting import cgroup

if TYPE_CHECKING:
    from conftest import Machine

GIB = 1024**3
UNLIMITED_1 = 9223372036854771712
V1_MOUNT = ("/sys/fs/cgroup/memory", "/", "cgroup", "rw,memory")
V2_MOUNT = ("/sys/fs/cgroup", "/", "cgroup2", "rw,nsdelegate")


def free(machine: Machine) -> list[int]:
    return sorted(limit.free_bytes for limit in cgroup.limits(root=machine.root))


def test_version_1_counts_pages_of_files_as_free(machine: Machine) -> None:
    machine.belongs_to("5:cpu:/other", "4:memory:/jobs/7").mounts(V1_MOUNT)
    machine.group_1("sys/fs/cgroup/memory/jobs/7", limit=4 * GIB, used=3 * GIB, files=2 * GIB)
    (limit,) = cgroup.limits(root=machine.root)
    assert limit.limit_bytes == 4 * GIB
    assert limit.free_bytes == 3 * GIB
    assert limit.source == "memory.limit_in_bytes of this process's control group"


def test_version_1_shared_memory_is_in_the_cache_and_not_free(machine: Machine) -> None:
    machine.belongs_to("4:memory:/jobs").mounts(V1_MOUNT)
    machine.group_1("sys/fs/cgroup/memory/jobs", limit=4 * GIB, used=3 * GIB, files=0, cache=2 * GIB)
    assert free(machine) == [GIB]


def test_version_2_counts_pages_of_files_and_slab_as_free(machine: Machine) -> None:
    machine.belongs_to("0::/user.slice/job.scope").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/user.slice/job.scope", limit=4 * GIB, used=3 * GIB, files=GIB)
    (limit,) = cgroup.limits(root=machine.root)
    assert limit.free_bytes == 2 * GIB
    assert limit.source == "memory.max of this process's control group"


def test_version_2_memory_high_bounds_too(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/job", limit="max", used=GIB, high=3 * GIB)
    assert free(machine) == [2 * GIB]


def test_every_level_above_counts(machine: Machine) -> None:
    machine.belongs_to("0::/a/b/c").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/a/b/c", limit=8 * GIB, used=GIB)
    machine.group_2("sys/fs/cgroup/a/b", limit="max", used=GIB)
    machine.group_2("sys/fs/cgroup/a", limit=5 * GIB, used=4 * GIB)
    assert free(machine) == [GIB, 7 * GIB]
    sources = {limit.source for limit in cgroup.limits(root=machine.root)}
    assert "memory.max of a control group above this process's" in sources


@pytest.mark.parametrize("limit", [UNLIMITED_1, 2**63 - 1, 2**63 - 65536])
def test_version_1_unlimited_is_no_limit(machine: Machine, limit: int) -> None:
    machine.belongs_to("4:memory:/").mounts(V1_MOUNT)
    machine.group_1("sys/fs/cgroup/memory", limit=limit, used=GIB)
    assert cgroup.limits(root=machine.root) == ()


def test_hybrid_takes_version_1_where_version_2_has_no_memory_controller(machine: Machine) -> None:
    machine.belongs_to("4:cpuset,memory:/job", "0::/job")
    machine.mounts(
        ("/sys/fs/cgroup/unified", "/", "cgroup2", "rw"), ("/sys/fs/cgroup/memory", "/", "cgroup", "rw,cpuset,memory")
    )
    (machine.root / "sys/fs/cgroup/unified/job").mkdir()
    machine.group_1("sys/fs/cgroup/memory/job", limit=4 * GIB, used=GIB)
    assert free(machine) == [3 * GIB]


@pytest.mark.parametrize("path", ["/docker/abc", "/../../docker/abc", "/docker/abc/../..", "/"])
def test_container_whose_path_is_not_below_the_mount_uses_the_mount(machine: Machine, path: str) -> None:
    machine.belongs_to(f"0::{path}").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup", limit=2 * GIB, used=GIB)
    assert free(machine) == [GIB]
    (group,) = cgroup.groups(root=machine.root)
    assert group.folder == group.mount == machine.root / "sys/fs/cgroup"


def test_container_that_sees_the_hosts_path_and_mounts_its_own_group(machine: Machine) -> None:
    machine.belongs_to("4:memory:/docker/abc/inner")
    machine.mounts(("/sys/fs/cgroup/memory", "/docker/abc", "cgroup", "rw,memory"))
    machine.group_1("sys/fs/cgroup/memory", limit=6 * GIB, used=GIB)
    machine.group_1("sys/fs/cgroup/memory/inner", limit=4 * GIB, used=GIB)
    assert free(machine) == [3 * GIB, 5 * GIB]


def test_a_path_that_only_starts_like_the_mounted_one_is_another(machine: Machine) -> None:
    machine.belongs_to("4:memory:/docker/abcdef")
    machine.mounts(("/sys/fs/cgroup/memory", "/docker/abc", "cgroup", "rw,memory"))
    machine.group_1("sys/fs/cgroup/memory", limit=6 * GIB, used=GIB)
    machine.group_1("sys/fs/cgroup/memory/def", limit=2 * GIB, used=GIB)
    assert free(machine) == [5 * GIB]


def test_mount_with_a_blank_in_its_name(machine: Machine) -> None:
    machine.belongs_to("0::/").mounts(("/mnt/my\\040groups", "/", "cgroup2", "rw"))
    machine.group_2("mnt/my groups", limit=2 * GIB, used=GIB)
    assert free(machine) == [GIB]


def test_usual_places_where_the_mounts_cannot_be_read(machine: Machine) -> None:
    machine.belongs_to("0::/job")
    machine.group_2("sys/fs/cgroup/job", limit=4 * GIB, used=GIB)
    assert free(machine) == [3 * GIB]


def test_group_that_uses_more_than_its_limit_has_nothing_free(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.group_2("sys/fs/cgroup/job", limit=GIB, used=2 * GIB)
    assert free(machine) == [0]


def test_unreadable_use_leaves_the_limit(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(V2_MOUNT)
    machine.write("sys/fs/cgroup/job/memory.max", f"{GIB}\n")
    assert free(machine) == [GIB]


@pytest.mark.parametrize("garbage", ["", "nonsense\n", "0::\n4:memory\n:::\n", "\x00\n"])
def test_garbage_is_no_limit(machine: Machine, garbage: str) -> None:
    machine.write("proc/self/cgroup", garbage)
    machine.write("proc/self/mountinfo", garbage)
    assert cgroup.limits(root=machine.root) == ()


def test_no_proc_is_no_limit(tmp_path: Path) -> None:
    assert cgroup.groups(root=tmp_path) == ()
    assert cgroup.limits(root=tmp_path) == ()
