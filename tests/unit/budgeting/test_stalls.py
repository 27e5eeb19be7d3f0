from __future__ import annotations

from pathlib import Path

from memfit.budgeting.stalls import stalled_share

PSI = "some avg10=40.00 avg60=1.00 avg300=0.00 total=5\nfull avg10={} avg60=0.00 avg300=0.00 total=3\n"


def written(path: Path, full: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PSI.format(full))


def test_the_larger_of_machine_and_group(tmp_path: Path) -> None:
    assert stalled_share(root=tmp_path) is None
    written(tmp_path / "proc/pressure/memory", "2.50")
    assert stalled_share(root=tmp_path) == 0.025
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    written(tmp_path / "sys/fs/cgroup/job/memory.pressure", "30.00")
    assert stalled_share(root=tmp_path) == 0.3


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "proc/pressure/memory"
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert stalled_share(root=tmp_path) is None
