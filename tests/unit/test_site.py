"""What the site must have: every public name in the reference, every page in reach, every code block of a known kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memfit
from memfit import cli, data, errors, shrink
from memfit.budgeting.presets import PRESETS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [path for path in (ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))) if path.name != "status.md"]
REFERENCE = "\n".join(path.read_text() for path in DOCS.glob("reference/*.md"))

LANGUAGES = ("python", "bash", "ipython", "text")
"""The blocks of the first three run in ``tests/contract/test_pages.py``, or say there why not."""

PUBLIC = [
    *(
        f"memfit.{name}"
        for name in memfit.__all__
        if name not in ("__version__", "data", "errors", "records", "shrink")
    ),
    *(f"memfit.data.{name}" for name in data.__all__),
    *(f"memfit.shrink.{name}" for name in shrink.__all__),
    *(f"memfit.errors.{name}" for name, one in vars(errors).items() if isinstance(one, type)),
    *(f"memfit.records.{name}" for name in ("Budget", "Profile", "Plan", "Event", "RunReport")),
]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_every_public_name(name: str) -> None:
    assert re.search(rf":: {re.escape(name)}$", REFERENCE, re.MULTILINE)


def test_the_reference_has_every_machine_and_the_parser_of_all_commands() -> None:
    assert [preset.name for preset in PRESETS if f"`{preset.name}`" not in REFERENCE] == []
    assert ":module: memfit.cli" in REFERENCE
    assert callable(cli.parser)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_is_of_a_known_kind(page: Path) -> None:
    opened = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]
    assert [info for info in opened if info not in LANGUAGES and not info.startswith("{")] == []
