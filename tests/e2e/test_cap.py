"""A script on arrays: ``model.fit`` dies under a cap, ``memfit.fit`` finishes there with the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memfit.probing.capped import run_capped

SCRIPT = Path(__file__).with_name("cap_script.py")
CAPS = {"dense": 2**30, "normalized": 5 * 2**28}
TOLERANCE = 1e-5


def command(way: str, name: str, path: Path) -> list[str]:
    return [sys.executable, str(SCRIPT), way, name, str(path)]


def weights(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CAPS)
def test_memfit_finishes_under_a_cap_with_the_weights_of_model_fit(
    backend: str, name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    env = {**environment, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    env["KERAS_TORCH_DEVICE"] = "cpu"

    killed = run_capped(command("plain", name, tmp_path / "killed.npz"), CAPS[name], env=env, timeout=280)
    assert killed.killed, killed
    assert not (tmp_path / "killed.npz").exists()

    finished = run_capped(command("memfit", name, tmp_path / "memfit.npz"), CAPS[name], env=env, timeout=280)
    assert (finished.returncode, finished.killed) == (0, False), "\n".join((str(finished), *finished.tail))
    report = json.loads(finished.tail[-1])
    split = report["micro_batch_size"] is not None
    # BatchNormalization mixes samples; without it, whichever is faster: on JAX that can be recomputation.
    assert (split, report["recomputed"]) == (False, True) if name == "normalized" else split or report["recomputed"], (
        report
    )
    assert report["planned"] <= CAPS[name]
    assert finished.peak_bytes <= min(report["predicted"], CAPS[name])

    subprocess.run(
        command("plain", name, tmp_path / "plain.npz"), env=env, capture_output=True, timeout=280, check=True
    )
    expected, found = weights(tmp_path / "plain.npz"), weights(tmp_path / "memfit.npz")
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(one).max()
