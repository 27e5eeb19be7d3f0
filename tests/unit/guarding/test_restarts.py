from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from memfit.guarding import restarts, session
from memfit.guarding.restarts import Ending
from memfit.records import Budget, Estimate, Plan

KILLED, CRASHED, GIB = -signal.SIGKILL, -signal.SIGSEGV, 2**30
PREDICTED = Plan(256, None, Budget(2 * GIB, "test"), peak=Estimate(GIB, 0, "compiled"))
UNPREDICTED = Plan(256, None, Budget(2 * GIB, "test"))


class Script:
    """Processes that end as they are told, each in the first call of ``fit``."""

    def __init__(
        self, folder: Path, *codes: int, plan: Plan | None = PREDICTED, peak: int = GIB, progress: bool = False
    ) -> None:
        self.folder, self.codes, self.plan = folder, list(codes), plan
        self.peak, self.progress = peak, progress
        self.limits: list[session.Limit] = []
        self.told: list[str] = []

    def run_once(self) -> Ending:
        call = self.folder / "call-000"
        self.limits.append(session.Session(self.folder).limit(call))
        session.note_plan(call, self.plan)
        (call / session.PLAN).write_text(json.dumps({**json.loads((call / session.PLAN).read_text()), "held": 0}))
        if self.progress:
            (call / f"snapshot-{len(self.limits):08d}.npz").touch()
        code = self.codes.pop(0)
        if code == 0:
            (call / session.PLAN).unlink()
        return Ending(code, self.peak, GIB, 0, 0)

    def supervised(self, max_restarts: int = 20) -> int:
        return restarts.until_it_ends(self.folder, self.run_once, max_restarts, self.told.append).code


def test_each_kill_makes_the_next_plan_strictly_smaller(tmp_path: Path) -> None:
    script = Script(tmp_path, KILLED, KILLED, 0)
    assert script.supervised() == 0
    assert [limit.budget for limit in script.limits] == [None, int(0.75 * GIB), int(0.75 * 0.75 * GIB)]
    assert "SIGKILL" in script.told[0]
    assert "smaller plan" in script.told[0]


def test_where_nothing_was_predicted_the_parts_are_halved(tmp_path: Path) -> None:
    script = Script(tmp_path, KILLED, 0, plan=UNPREDICTED)
    assert script.supervised() == 0
    assert [limit.micro_batch_size for limit in script.limits] == [None, 128]


def test_a_failure_for_another_reason_fails_once(tmp_path: Path) -> None:
    for code in (1, 3, -signal.SIGTERM):
        script = Script(tmp_path, code)
        assert script.supervised() == code
        assert script.told == []


def test_a_crash_is_for_memory_only_where_much_was_held(tmp_path: Path) -> None:
    assert Script(tmp_path, CRASHED, peak=GIB // 10).supervised() == CRASHED
    assert Script(tmp_path, CRASHED, 0, peak=GIB).supervised() == 0


def test_without_a_smaller_plan_and_without_progress_it_ends(tmp_path: Path) -> None:
    script = Script(tmp_path, *[KILLED] * 9, plan=None)
    assert script.supervised() == KILLED
    assert len(script.limits) == 4
    assert not script.limits[-1].may_fail


def test_a_kill_that_nothing_explains_is_not_blamed_on_the_plan_at_first(tmp_path: Path) -> None:
    script = Script(tmp_path, KILLED, KILLED, 0, peak=GIB // 10, progress=True)
    assert script.supervised() == 0
    assert [limit.budget for limit in script.limits] == [None, None, None]
    assert "the same plan" in script.told[0]


def test_progress_is_worth_another_start(tmp_path: Path) -> None:
    script = Script(tmp_path, *[KILLED] * 9, 0, plan=None, progress=True)
    assert script.supervised() == 0


@pytest.mark.parametrize("most", [0, 2])
def test_restarts_are_bounded(most: int, tmp_path: Path) -> None:
    script = Script(tmp_path, *[KILLED] * 9, progress=True)
    assert script.supervised(max_restarts=most) == KILLED
    assert len(script.limits) == most + 1


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (Ending(KILLED, GIB, GIB, 0, 0), "outside of fit"),
        (Ending(KILLED, 1, GIB, 0, 1), "outside of fit"),
        (Ending(KILLED, 1, GIB, 0, 0), None),  # an operator's
        (Ending(1, GIB, GIB, 0, 1), None),
        (Ending(CRASHED, GIB, GIB, 0, 0), "SIGSEGV"),
    ],
)
def test_a_process_that_is_not_started_again_is_told_what_it_died_of(
    tmp_path: Path, ending: Ending, said: str | None
) -> None:
    words = restarts.last_words(tmp_path, ending)
    assert (words is None) if said is None else (words is not None and said in words and "1 GiB" in words)


def test_where_a_call_was_interrupted_nothing_smaller_was_left(tmp_path: Path) -> None:
    session.note_plan(tmp_path / "call-000", PREDICTED)
    assert "nothing smaller" in str(restarts.last_words(tmp_path, Ending(KILLED, GIB, GIB, 0, 0)))


class Attempts(Script):
    """A script whose call is attempted in each process that may."""

    def run_once(self) -> Ending:
        call = self.folder / "call-000"
        call.mkdir(exist_ok=True)
        limit = session.Session(self.folder).limit(call)
        self.seen = [*getattr(self, "seen", []), (limit.attempt, limit.budget)]
        if limit.attempt and not session.has_failed_attempt(call):
            session.note_attempt(call, "one sample at a time", "It needs 2 GiB.")
        else:
            self.codes = [1]  # refused
        return super().run_once()


def test_what_was_attempted_in_vain_is_started_once_more_to_be_refused(tmp_path: Path) -> None:
    script = Attempts(tmp_path, *[KILLED] * 9)
    assert script.supervised() == 1
    assert script.seen == [(True, None), (True, None)]
    assert script.told[0].endswith("it is started again, as what was attempted does not fit, to say so")


def test_attempts_that_get_on_are_bounded_as_restarts_are(tmp_path: Path) -> None:
    script = Attempts(tmp_path, *[KILLED] * 9, progress=True)
    assert script.supervised(max_restarts=3) == 1
    assert [attempt for attempt, _ in script.seen] == [True, True, True, False]
    assert "from its last snapshot" in script.told[0]


def test_the_same_command_later_attempts_anew(tmp_path: Path) -> None:
    assert Attempts(tmp_path, KILLED).supervised() == 1
    again = Attempts(tmp_path, 0)
    assert again.supervised() == 0
    assert [attempt for attempt, _ in again.seen] == [True]
