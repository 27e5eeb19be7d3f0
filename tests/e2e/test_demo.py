"""``memfit demo`` as a user runs it, with fewer images."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memfit import units

DEMO = [sys.executable, "-m", "memfit", "demo", "--images", "400", "--epochs", "1", "--json"]


@pytest.mark.timeout(900)
def test_plain_keras_is_killed_and_memfit_finishes(backend: str, environment: dict[str, str]) -> None:
    run = subprocess.run(
        [*DEMO, "--backend", backend], env=environment, capture_output=True, text=True, timeout=840, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\n") == 1
    report = json.loads(run.stdout)
    assert report["backend"] == backend
    assert report["as_promised"]
    assert (report["num_training"], report["num_validation"]) == (320, 80)
    for plain, memfit in (report["runs"][:2], report["runs"][2:]):
        assert (plain["way"], plain["outcome"]) == ("plain", "killed by the cap")
        assert (memfit["way"], memfit["outcome"]) == ("memfit", "finished")
        assert memfit["model"] == plain["model"]
        assert 1 < memfit["micro_batch_size"] < report["batch_size"]
        assert memfit["peak_bytes"] <= report["cap_bytes"]
        # What was predicted holds, and the cap was found without being told.
        assert memfit["peak_bytes"] <= memfit["predicted_peak_bytes"] <= memfit["budget_bytes"], summary(memfit)
        assert memfit["budget_bytes"] <= report["cap_bytes"]
        assert 0 <= memfit["accuracy"] <= 1


@pytest.mark.timeout(120)
def test_a_demo_that_is_ended_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    # The fixture looks for what is left. Ended while a child trains: the folder of images and a child are there.
    demo = subprocess.Popen(
        [*DEMO, "--images", "400"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert demo.stderr is not None
        while "plain Keras ..." not in (line := demo.stderr.readline()):
            assert line, "the demo ended early"
        assert list((tmp_path / "temporary").glob("memfit-demo-*"))
        time.sleep(0.5)
        demo.send_signal(signal.SIGTERM)
        stdout, stderr = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert (demo.returncode, stdout) == (130, "")
    assert stderr.endswith("memfit demo: interrupted\n")


def summary(run: dict[str, int]) -> str:
    names = ("peak_bytes", "predicted_peak_bytes", "budget_bytes")
    return ", ".join(f"{name}={units.text(run[name] or 0)}" for name in names)
