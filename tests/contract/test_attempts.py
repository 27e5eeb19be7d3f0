"""What is not predicted to fit and not ruled out is attempted in a supervised process, once, and refused elsewhere.

What each step takes is scripted, in a worker process by a callback as it arrives there: the models are really trained.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import arranging
from memfit.errors import DoesNotFitError
from memfit.guarding import session
from memfit.levers import apart, micro_batch
from memfit.predicting import Predictions
from memfit.records import NO_LEVERS, Estimate, Levers, Split

MIB = 2**20
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(24, 16)).astype("float32"), RNG.normal(size=(24, 1)).astype("float32")
RUN: dict[str, Any] = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
MAY_FIT, RULED_OUT = 780 * MIB, 720 * MIB


def scripted() -> None:
    """A whole batch takes 900 MiB and one sample 800, 50 more or less; what the tests of the model take is not counted."""

    def peak(self: Predictions, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate:
        size = 8 if split is None else split.micro_batch_size
        return Estimate((800 + 100 * (size - 1) // 7) * MIB, 50 * MIB, "scripted")

    for name, value in {
        "peak": peak,
        "idle": lambda self: 0,
        "is_weak": lambda *_: False,
        "crude": lambda self: Estimate(900 * MIB, 0, "scripted"),
        "compiling": 0,
    }.items():
        setattr(Predictions, name, value)


NAMES = ("peak", "idle", "is_weak", "crude", "compiling")


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:  # so that they are put back
        monkeypatch.setattr(Predictions, name, vars(Predictions)[name])
    scripted()
    monkeypatch.setattr(session, "_current", None)


class Scripts(keras.callbacks.Callback):
    """Scripts what steps take in the process that it is sent to, and kills that as it trains, if asked to."""

    def __init__(self, trained: Path, *, kills: bool) -> None:
        super().__init__()
        self.trained, self.kills = str(trained), kills

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        scripted()

    def on_train_begin(self, logs: Any = None) -> None:
        with open(self.trained, "a") as file:
            file.write("trained\n")
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)


def model(*, deep: bool = False) -> Any:
    keras.utils.set_random_seed(1)
    layers = [*(keras.layers.Dense(16, activation="relu") for _ in range(6 if deep else 1)), keras.layers.Dense(1)]
    built = keras.Sequential([keras.Input((16,)), *layers])
    built.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return built


def supervised(folder: Path, *, may_fail: bool = True) -> Path:
    """From here on this process is one that a supervisor starts again; gives the folder of its first call."""
    session.begin(folder)
    (folder / session.LIMITS).write_text(json.dumps({"calls": {}, "may_fail": may_fail}))
    return folder / "call-000"


def same(one: Any, other: Any) -> None:
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def attempt(report: Any) -> str:
    """What was told of the attempt."""
    return next(event.message for event in report.events if event.kind == "attempt")


@pytest.mark.parametrize("idle", [0, 640 * MIB])  # in the small room beside what is held no test is made first
def test_the_smallest_is_attempted_with_a_word_before_and_gives_the_weights_of_model_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, idle: int
) -> None:
    monkeypatch.setattr(Predictions, "idle", lambda self: idle)
    plain, ours = model(), model()
    plain.fit(X, Y, **RUN)
    call = supervised(tmp_path)
    report = memfit.fit(ours, X, Y, **RUN | {"verbose": 2}, budget=MAY_FIT).memfit
    same(plain, ours)
    assert report.plan.micro_batch_size == 1
    assert report.plan.exact
    assert not report.plan.levers.remat
    assert ("not tested, as there is little room" in str(report.plan)) == (idle > 0)
    said = "one sample at a time is predicted to need 800 MiB, 50 MiB more or less, of 780 MiB; it is attempted all the same"
    assert said in attempt(report)
    assert f"memfit: {said}" in capsys.readouterr().err
    assert not (call / session.ATTEMPT).exists()


def test_where_samples_are_mixed_the_whole_batch_is_attempted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictions, "idle", lambda self: 640 * MIB)
    mixing = micro_batch.Separability(None, 0.5, "the model mixes samples")
    monkeypatch.setattr(micro_batch, "separability", lambda *_: mixing)
    monkeypatch.setattr(apart, "is_apart", lambda _: False)
    plain, ours = model(), model()
    plain.fit(X, Y, **RUN)
    supervised(tmp_path)
    report = memfit.fit(ours, X, Y, **RUN, budget=870 * MIB).memfit
    assert report.plan.micro_batch_size is None
    assert "the whole batch" in attempt(report)
    same(plain, ours)


def test_an_attempt_in_a_small_room_says_that_it_was_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(self: Predictions, split: Split | None, levers: Levers = NO_LEVERS) -> Estimate:
        return Estimate((900 if levers.remat is None else 800) * MIB, 50 * MIB, "scripted")

    monkeypatch.setattr(Predictions, "idle", lambda self: 640 * MIB)
    monkeypatch.setattr(Predictions, "peak", peak)
    plain, ours = model(deep=True), model(deep=True)
    plain.fit(X, Y, **RUN)
    supervised(tmp_path)
    report = memfit.fit(ours, X, Y, **RUN, budget=MAY_FIT).memfit
    assert report.plan.levers.remat is not None
    assert "not compared with the plain step" in str(report.plan)
    same(plain, ours)


@pytest.mark.parametrize("way", ["ruled out", "not started again", "nobody supervises"])
def test_it_is_refused_without_an_attempt(tmp_path: Path, way: str) -> None:
    call = supervised(tmp_path, may_fail=way != "not started again") if way != "nobody supervises" else tmp_path
    ours = model()
    before = ours.get_weights()
    with pytest.raises(DoesNotFitError) as refused:
        memfit.fit(ours, X, Y, **RUN, budget=RULED_OUT if way == "ruled out" else MAY_FIT)
    assert "one sample at a time needs 850 MiB" in str(refused.value)
    assert "attempted" not in str(refused.value)
    assert not (call / session.ATTEMPT).exists()
    for left, right in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("budget", [MAY_FIT, RULED_OUT])
def test_a_compiler_that_is_guessed_to_need_more_than_the_room_is_tried_unless_that_is_hopeless(
    tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictions, "compiling", 300 * MIB)
    monkeypatch.setattr(Predictions, "idle", lambda self: 640 * MIB)
    monkeypatch.setattr(Predictions, "peak", lambda *_: Estimate(600 * MIB, 0, "scripted"))
    monkeypatch.setattr(arranging, "RUNTIME_RESERVE", 0)
    monkeypatch.setattr(Predictions, "crude", lambda self: Estimate(600 * MIB, 0, "scripted"))
    supervised(tmp_path)
    if budget == RULED_OUT:  # 80 MiB are left, and 300 may be 125
        with pytest.raises(DoesNotFitError, match="compiling its step takes about 300 MiB"):
            memfit.fit(model(), X, Y, **RUN, budget=budget)
        return
    report = memfit.fit(model(), X, Y, **RUN, budget=budget).memfit
    assert "is guessed to take 300 MiB of the 140 MiB" in attempt(report)


def test_memory_that_runs_out_in_the_tests_of_an_attempt_is_the_attempts_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(*_: Any) -> Any:
        raise MemoryError("of the test")

    monkeypatch.setattr(Predictions, "idle", lambda self: 640 * MIB)
    monkeypatch.setattr(micro_batch, "separability", runs_out)
    monkeypatch.setattr(apart, "is_apart", lambda _: False)
    monkeypatch.setattr(session, "_end", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    call = supervised(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        memfit.fit(model(), X, Y, **RUN, budget=MAY_FIT)
    assert (call / session.FAILED).exists()


def test_a_worker_that_holds_is_the_training(tmp_path: Path) -> None:
    plain, ours = model(), model()
    plain.fit(X, Y, **RUN)
    callback = Scripts(tmp_path / "trained", kills=False)
    report = memfit.fit(ours, X, Y, **RUN, budget=MAY_FIT, isolate=True, callbacks=[callback]).memfit
    same(plain, ours)
    assert "attempt" in {event.kind for event in report.events}


def test_a_worker_that_is_killed_in_an_attempt_is_refused_with_what_became_of_it(tmp_path: Path) -> None:
    ours, trained = model(), tmp_path / "trained"
    before, callbacks = ours.get_weights(), [Scripts(trained, kills=True)]
    with pytest.raises(DoesNotFitError) as refused:
        memfit.fit(ours, X, Y, **RUN, budget=MAY_FIT, isolate=True, callbacks=callbacks)
    assert "one sample at a time needs 850 MiB, the budget is 780 MiB" in str(refused.value)
    assert "(one sample at a time), and was ended for want of memory." in str(refused.value)
    assert trained.read_text() == "trained\n"
    for left, right in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_worker_is_not_begun_to_be_trained_in_where_that_is_ruled_out(tmp_path: Path) -> None:
    callbacks = [Scripts(tmp_path / "trained", kills=True)]
    with pytest.raises(DoesNotFitError) as refused:
        memfit.fit(model(), X, Y, **RUN, budget=RULED_OUT, isolate=True, callbacks=callbacks)
    assert "attempted" not in str(refused.value)
    assert not (tmp_path / "trained").exists()
