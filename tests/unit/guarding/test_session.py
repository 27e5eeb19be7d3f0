from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memfit.errors import DoesNotFitError, OutOfMemoryError, SnapshotError
from memfit.guarding import session
from memfit.guarding.session import Limit, Session


def test_calls_are_numbered_and_those_of_callbacks_are_not(tmp_path: Path) -> None:
    current = Session(tmp_path)
    with current.entered() as first, current.entered() as inner:
        assert (first, inner) == (tmp_path / "call-000", None)
    with current.entered() as second:
        assert second == tmp_path / "call-001"


def test_a_call_that_is_done_or_failed_is_no_longer_under_way(tmp_path: Path) -> None:
    current, call = Session(tmp_path), tmp_path / "call-000"

    def fails(limit: Limit) -> Any:
        assert (call / session.PLAN).exists()
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="of the user's own"):
        session.supervised(current, call, fails)
    assert not (call / session.PLAN).exists()
    assert session.supervised(current, call, lambda limit: "history") == "history"
    assert not (call / session.PLAN).exists()


def test_a_limit_below_the_smallest_plan_is_dropped_and_said(tmp_path: Path) -> None:
    call = tmp_path / "call-000"
    (tmp_path / session.LIMITS).write_text(json.dumps({"calls": {"call-000": {"budget": 1}}, "may_fail": True}))
    seen: list[Limit] = []

    def run(limit: Limit) -> str:
        seen.append(limit)
        if limit.budget is not None:
            raise DoesNotFitError("1 byte")
        return "history"

    assert session.supervised(Session(tmp_path), call, run) == "history"
    assert [limit.budget for limit in seen] == [1, None]
    assert (call / session.SMALLEST).exists()


def test_snapshots_of_another_script_are_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (tmp_path / f"call-{number:03d}").mkdir()
        (tmp_path / f"call-{number:03d}" / "snapshot-00000000.npz").touch()
    attempts = iter([SnapshotError("of another model"), None])

    def run(limit: Limit) -> str:
        error = next(attempts)
        if error is not None:
            raise error
        return "history"

    assert session.supervised(Session(tmp_path), tmp_path / "call-001", run) == "history"
    assert [path.parent.name for path in tmp_path.glob("*/*.npz")] == ["call-000"]
    assert "trained anew: of another model" in capsys.readouterr().err


def test_the_last_failure_for_memory_is_the_scripts_own(tmp_path: Path) -> None:
    (tmp_path / session.LIMITS).write_text(json.dumps({"calls": {}, "may_fail": False}))

    def run(limit: Limit) -> Any:
        raise OutOfMemoryError("no smaller plan")

    with pytest.raises(OutOfMemoryError):
        session.supervised(Session(tmp_path), tmp_path / "call-000", run)


def attempting(folder: Path, *, may_fail: bool = True, budget: int | None = None) -> list[Limit]:
    """One process in which nothing fits and what may be attempted is, until the kernel ends it; gives its limits."""
    call, seen = folder / "call-000", list[Limit]()
    calls = {} if budget is None else {"call-000": {"budget": budget}}
    (folder / session.LIMITS).write_text(json.dumps({"calls": calls, "may_fail": may_fail}))

    def run(limit: Limit) -> Any:
        seen.append(limit)
        if not limit.attempt:
            raise DoesNotFitError("It needs 2 GiB.")
        session.note_attempt(call, "one sample at a time", "It needs 2 GiB.")
        raise KeyboardInterrupt  # stands for the kill

    try:
        session.supervised(Session(folder), call, run)
    except KeyboardInterrupt:
        (call / session.PLAN).touch()
    return seen


def test_what_does_not_fit_is_attempted_once_and_then_refused_with_what_became_of_it(tmp_path: Path) -> None:
    assert [limit.attempt for limit in attempting(tmp_path)] == [True]
    with pytest.raises(DoesNotFitError) as refused:
        attempting(tmp_path)
    said = "as the process is supervised (one sample at a time), and was ended for want of memory."
    assert str(refused.value) == f"It needs 2 GiB. It was attempted all the same, {said}"


def test_an_attempt_that_got_on_is_attempted_again_from_there(tmp_path: Path) -> None:
    attempting(tmp_path)
    (tmp_path / "call-000" / "snapshot-00000001.npz").touch()
    assert [limit.attempt for limit in attempting(tmp_path)] == [True]
    with pytest.raises(DoesNotFitError, match="was ended for want of memory"):
        attempting(tmp_path)


def test_an_attempt_that_is_done_is_no_attempt_any_more(tmp_path: Path) -> None:
    attempting(tmp_path)
    (tmp_path / "call-000" / "snapshot-00000001.npz").touch()
    assert session.supervised(Session(tmp_path), tmp_path / "call-000", lambda limit: "history") == "history"
    assert not (tmp_path / "call-000" / session.ATTEMPT).exists()


def test_nothing_is_attempted_where_the_process_is_not_started_again(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError) as refused:
        attempting(tmp_path, may_fail=False)
    assert str(refused.value) == "It needs 2 GiB."


def test_after_a_kill_the_smaller_plan_is_looked_for_before_anything_is_attempted(tmp_path: Path) -> None:
    seen = attempting(tmp_path, budget=1)
    assert [(limit.budget, limit.attempt) for limit in seen] == [(1, False), (None, True)]
    assert (tmp_path / "call-000" / session.SMALLEST).exists()
    with pytest.raises(DoesNotFitError, match="was ended for want of memory"):
        attempting(tmp_path, budget=1)


def test_a_refusal_of_the_attempt_itself_is_told_as_ever(tmp_path: Path) -> None:
    call = tmp_path / "call-000"
    (tmp_path / session.LIMITS).write_text(json.dumps({"calls": {}, "may_fail": True}))

    def run(limit: Limit) -> Any:
        session.note_attempt(call, "compiling its step", "It needs 2 GiB.")
        raise DoesNotFitError("It needs 2 GiB.")

    with pytest.raises(DoesNotFitError) as refused:
        session.supervised(Session(tmp_path), call, run)
    assert str(refused.value) == "It needs 2 GiB."
