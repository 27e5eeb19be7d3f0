"""The public surface, and what importing it brings along."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = ("tensorflow", "jax", "torch", "keras")


def test_importing_memfit_imports_no_framework() -> None:
    code = (
        "import sys, memfit, memfit.records, memfit.budgeting, memfit.data, memfit.shrink, memfit.cli, memfit.backends, "
        "memfit.backends.simulated, memfit.planning.planner, memfit.guarding.watch, memfit.probing.capped\n"
        f"print([name for name in {FRAMEWORKS} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_public_names_are_these() -> None:
    import memfit

    assert memfit.__all__ == [
        "MemoryMonitor",
        "__version__",
        "budget",
        "data",
        "errors",
        "evaluate",
        "fit",
        "plan",
        "predict",
        "profile",
        "protect",
        "records",
        "shrink",
    ]
    assert set(memfit.__all__) <= set(dir(memfit))
