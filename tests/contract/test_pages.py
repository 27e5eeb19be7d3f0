"""Every code block of the README, the guides and the site runs, page by page, as written.

The blocks of a page run in order in one namespace, in an empty folder. What a page needs and a reader need not see stands in an
``invisible-code-block`` comment of its source; a block that cannot run here has a ``skip`` comment with the reason before it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path

import keras
import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import memfit

ROOT = Path(__file__).parents[2]


def run_shell(example: Example) -> None:
    """The lines of a ``bash`` block, with the memfit and the Python that run the tests."""
    sources = Path(memfit.__file__).parents[1]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(sources), os.environ.get("PYTHONPATH"))))
    environment["KERAS_BACKEND"] = keras.backend.backend()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{example.path}:{example.line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def refuse(example: Example) -> None:
    raise AssertionError(
        f"{example.path}:{example.line}: only a notebook runs this block: put a `skip` comment before it"
    )


PARSED = Sybil(
    [
        PythonCodeBlockParser(),
        CodeBlockParser("bash", run_shell),
        CodeBlockParser("ipython", refuse),
        SkipParser(),
    ],
    path=str(ROOT),
)


PAGES = [
    path
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
    if path.name != "status.md" and next(PARSED.parse(path).examples(), None) is not None
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT).with_suffix("")))
def test_the_blocks_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = PARSED.parse(page)
    document.namespace.update({"__name__": "__main__", "backend": keras.backend.backend()})
    for example in document:
        try:
            example.evaluate()
        except unittest.SkipTest as skipped:
            print(f"{page.name}:{example.line} skipped: {skipped}")
