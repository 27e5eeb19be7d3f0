"""Answers kept on disk: what comes back is what went in, and what cannot be read is as if it were not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memfit.records import Estimate, Moment, estimate_from_fields

ESTIMATE = Estimate(10, 2, "scripted", Moment("backward", "conv", "mul"), workspace=3, compiling=4, fixed=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module, with a folder of its own. It imports Keras' seam, which this process must not: the keys are given."""
    import importlib.util
    import sys
    import types

    backends = ("memfit.backends.keras_optimizer", "memfit.backends.keras_saving", "memfit.backends.keras_seam")
    for name in ("keras", *backends):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        if name != "keras":
            monkeypatch.setattr(name, sys.modules[name], raising=False)
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    spec = importlib.util.find_spec("memfit.profiling.cache")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_what_was_kept_comes_back(cache) -> None:
    cache.store("a" * 64, ESTIMATE)
    assert cache.load("a" * 64) == ESTIMATE
    assert cache.load("b" * 64) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"bytes": 1}', '{"bytes": 1, "margin": 2, "source": "x", "new": 3}']
)
def test_a_file_that_cannot_be_read_is_as_none(cache, tmp_path: Path, content: str) -> None:
    cache.store("a" * 64, ESTIMATE)
    (tmp_path / "estimates" / ("a" * 64 + ".json")).write_text(content)
    assert cache.load("a" * 64) is None


def test_no_name_keeps_nothing(cache, tmp_path: Path) -> None:
    cache.store(None, ESTIMATE)
    assert cache.load(None) is None
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_no_error(cache, tmp_path: Path) -> None:
    (tmp_path / "estimates").write_text("a file")
    cache.store("a" * 64, ESTIMATE)
    assert cache.load("a" * 64) is None


def test_no_draft_is_left(cache, tmp_path: Path) -> None:
    cache.store("a" * 64, ESTIMATE)
    assert os.listdir(tmp_path / "estimates") == ["a" * 64 + ".json"]


def test_an_estimate_goes_to_json_and_back() -> None:
    import json

    assert estimate_from_fields(json.loads(ESTIMATE.to_json())) == ESTIMATE


def test_what_a_trial_taught_corrects_other_steps(cache) -> None:
    correction = cache.Correction(predicted=100, measured=120)
    cache.store_correction("c" * 64, correction)
    assert cache.load_correction("c" * 64) == correction
    corrected = correction.applied(ESTIMATE)
    assert corrected.bytes == 12
    assert corrected.margin == ESTIMATE.margin
    assert corrected.source == "scripted, corrected by a trial"


def test_a_trial_of_something_else_corrects_by_two_at_most(cache) -> None:
    assert cache.Correction(1, 10**9).factor == 2.0
    assert cache.Correction(10**9, 1).factor == 0.5
    assert cache.Correction(0, 0).factor == 0.5


def test_an_estimate_is_no_correction(cache) -> None:
    cache.store("d" * 64, ESTIMATE)
    assert cache.load_correction("d" * 64) is None
