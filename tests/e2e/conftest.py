"""Whole programs in processes of their own, under real caps. This process imports no framework."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from memfit.budgeting import cgroup

BACKENDS = ("tensorflow", "jax", "torch")
_MARK = "MEMFIT_E2E_RUN"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; one that is not installed is skipped."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for a program; after the test no process that has it and no file of memfit's is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    groups_before = group_folders()
    mark = uuid.uuid4().hex
    yield {**os.environ, "TMPDIR": str(folder), _MARK: mark, "TF_CPP_MIN_LOG_LEVEL": "3"}
    assert processes_with(mark) == []
    assert list(folder.glob("memfit-*")) == []
    assert group_folders() <= groups_before


@pytest.fixture
def executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[nbformat.NotebookNode], nbformat.NotebookNode]:
    """Executes a notebook headless by a real kernel in an empty folder; gives it back with its outputs.

    A cell that raises is an error here. The backend is the one that starts fastest, unless KERAS_BACKEND names another.
    """
    folder = tmp_path / "notebook"
    folder.mkdir()
    # Children inherit the environment of this process.
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))

    def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
        resources = {"metadata": {"path": str(folder)}}
        return NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()

    return execute


def processes_with(mark: str) -> list[str]:
    """What is left of a test's programs, as command lines."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return left


def group_folders() -> set[Path]:
    """The control groups that memfit made and did not remove, of programs that have ended."""
    found = {path for group in cgroup.groups() for level in group.levels[:2] for path in level.glob("memfit-*")}
    return {path for path in found if not psutil.pid_exists(int(path.name.split("-")[1]))}
