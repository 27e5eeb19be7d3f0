"""A tf.data pipeline with a cache and a shuffle larger than its share holds no more than the share, and gives every sample."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20


def growth(kind: str, folder: Path) -> tuple[int, int]:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tf_data_script.py")), kind],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MEMFIT_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    num_findings, grown = run.stdout.split()
    return int(num_findings), int(grown)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_a_pipeline_of_192_mib_holds_its_share_of_32(tmp_path: Path) -> None:
    plain = growth("plain", tmp_path)[1]
    assert plain > 160 * MIB
    num_findings, grown = growth("bounded", tmp_path)
    assert num_findings == 2
    # TensorFlow's threads, its readers of the cache file and the first call of each operation take 30 to 100 MiB more.
    assert grown < plain - 40 * MIB
    assert list(tmp_path.iterdir()) == []
