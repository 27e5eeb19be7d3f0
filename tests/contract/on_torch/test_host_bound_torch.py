"""The bound on host memory on PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("for the PyTorch backend", allow_module_level=True)

import torch

from memfit import backends
from memfit.backends.host_bound import HostBound
from memfit.guarding import recover


@pytest.mark.skipif(not HostBound.is_possible(), reason="Linux with a glibc that says what is free")
@pytest.mark.parametrize(
    "name",
    [
        # Where code finds no memory either, this thread's oneDNN fails for ever.
        "room_for_code_script.py",
        # The engine keeps the graph of a pass that failed until the next.
        "failed_backward_script.py",
    ],
)
def test_in_a_process_of_its_own(name: str) -> None:
    script = Path(__file__).with_name(name)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not HostBound.is_possible(), reason="Linux with a glibc that says what is free")
def test_a_step_that_torch_compiles_is_compiled_under_the_bound() -> None:
    compiled: list[object] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=True)
    bound = recover.bound_on_host(backends.current(), model)
    assert bound is not None
    step = torch.compile(lambda x: torch.relu(x).sum(), backend=compiler)
    with bound.applied():
        step(torch.ones(8))
    assert compiled
