"""The bound on host memory on PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("for the PyTorch backend", allow_module_level=True)

from memfit.backends.host_bound import HostBound

SCRIPT = Path(__file__).with_name("room_for_code_script.py")


@pytest.mark.skipif(not HostBound.is_possible(), reason="Linux with a glibc that says what is free")
def test_code_is_made_where_tensors_find_no_memory() -> None:
    """Where code finds none either, this thread's oneDNN fails for ever."""
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
