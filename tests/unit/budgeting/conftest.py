"""A machine made of files: fake trees of /proc and /sys below a temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest

GIB = 1024**3


class Machine:
    """Writes what the readers read. All numbers are bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def memory(self, *, total: int, available: int) -> Machine:
        self.write(
            "proc/meminfo", f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n"
        )
        return self

    def holds(self, *, anonymous: int, shared: int = 0) -> Machine:
        lines = f"VmSize:\t{2 * anonymous // 1024} kB\nVmHWM:\t{3 * anonymous // 1024} kB\nVmData:\t99 kB\n"
        lines += f"RssAnon:\t{anonymous // 1024} kB\nRssFile:\t7777 kB\nRssShmem:\t{shared // 1024} kB\n"
        self.write("proc/self/status", lines)
        return self

    def belongs_to(self, *lines: str) -> Machine:
        self.write("proc/self/cgroup", "\n".join(lines) + "\n")
        return self

    def mounts(self, *mounts: tuple[str, str, str, str]) -> Machine:
        """Each mount: its folder, the mounted path, "cgroup" or "cgroup2", the options."""
        lines = [
            f"{30 + number} 23 0:{number} {path} {folder} rw,relatime shared:{number} - {kind} {kind} {options}"
            for number, (folder, path, kind, options) in enumerate(mounts)
        ]
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\n" + "\n".join(lines) + "\n")
        for folder, *_ in mounts:
            (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return self

    def group_1(self, folder: str, *, limit: int, used: int, files: int = 0, cache: int = 0) -> Machine:
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        self.write(
            f"{folder}/memory.stat",
            f"cache 1\ninactive_file 5\nactive_file 5\ntotal_cache {cache}\n"
            f"total_inactive_file {files - files // 4}\ntotal_active_file {files // 4}\n",
        )
        return self

    def group_2(self, folder: str, *, limit: int | str, used: int, files: int = 0, high: int | str = "max") -> Machine:
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.high", f"{high}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        self.write(
            f"{folder}/memory.stat",
            f"anon {used - files}\nfile {files}\ninactive_file {files // 2}\nactive_file {files // 4}\n"
            f"slab_reclaimable {files - files // 2 - files // 4}\n",
        )
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """16 GiB, 10 of them available, this process holding 1; no control groups yet."""
    return Machine(tmp_path).memory(total=16 * GIB, available=10 * GIB).holds(anonymous=GIB)


@pytest.fixture(scope="session")
def machine_type() -> type[Machine]:
    """For tests that need a machine for each example."""
    return Machine
