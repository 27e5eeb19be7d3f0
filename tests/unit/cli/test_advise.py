"""``memfit advise`` without a framework: what it takes and what it says."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from memfit import shrink
from memfit.cli import advise, model_sources


class Told:
    """Advice as the command prints it."""

    def __str__(self) -> str:
        return "half of it"

    def to_json(self) -> str:
        return '{"advice": []}'


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library is asked for."""
    found: dict[str, Any] = {}

    def library(model: Any, **options: Any) -> Told:
        found.update(options, model=model)
        return Told()

    monkeypatch.setattr(model_sources, "loaded", lambda source: f"the model of {source}")
    monkeypatch.setattr(shrink, "advise", library, raising=False)
    return found


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    advise.add_arguments(parser)
    return advise.run(parser.parse_args(argv))


def test_the_options_reach_the_library(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("m.keras", "--batch-size", "8", "--input-shape", "4,4,3", "--quick") == 0
    assert asked["model"] == "the model of m.keras"
    assert (asked["batch_size"], asked["shapes"], asked["quick"]) == (8, [(4, 4, 3)], True)
    assert capsys.readouterr().out == "half of it\n"


def test_json_is_one_object(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("m.keras", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"advice": []}
