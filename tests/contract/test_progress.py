"""Memory beside Keras' progress bar: in a terminal, a narrow one, a log file; and ``History`` as ever."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.records import Budget, Reading
from memfit.reporting import console, progress
from memfit.reporting.console import Display
from memfit.reporting.progress import MemoryProgress

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :2].copy()
ESCAPES = re.compile(r"\x1b\[\d+m")
GIB = 2**30


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def printed(capsys: Any, monkeypatch: Any, display: Display, **arguments: Any) -> str:
    monkeypatch.setattr(console, "display", lambda: display)
    memfit.fit(small_model(), X, Y, batch_size=8, **arguments)
    return ESCAPES.sub("", capsys.readouterr().out)


@pytest.mark.parametrize("verbose", ["auto", 1])
def test_a_terminal_shows_memory_of_the_budget_beside_the_metrics(capsys: Any, monkeypatch: Any, verbose: Any) -> None:
    out = printed(capsys, monkeypatch, Display("terminal", 200), verbose=verbose)
    assert re.search(r"8/8 ━+ .* - loss: \d\.\d{4} - mae: \d\.\d{4} - host: \d+\.\d/[\d.]+ GiB", out)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_bar_that_is_written_over_fits_the_terminal(capsys: Any, monkeypatch: Any, columns: int) -> None:
    out = printed(capsys, monkeypatch, Display("terminal", columns), epochs=2)
    written_over = [line for line in re.split(r"[\r\n]", out.replace("\b", "")) if "━" in line and "8/8" not in line]
    assert written_over
    assert max(len(line.rstrip()) for line in written_over) < columns
    assert columns < 60 or all(re.search(r"memory: \d+%|host:", line) for line in written_over)


def test_a_log_file_has_plain_lines(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    out = printed(capsys, monkeypatch, Display("log"), epochs=2)
    assert not re.search("[\r\b━\x1b]", out)
    assert out.count("host: ") == 18  # each of 8 batches, and the end, twice
    assert "Epoch 2/2" in out


def test_a_log_file_has_one_line_an_epoch_where_epochs_are_short(capsys: Any, monkeypatch: Any) -> None:
    assert printed(capsys, monkeypatch, Display("log"), epochs=3).count("host: ") == 3


def test_one_line_an_epoch_and_none(capsys: Any, monkeypatch: Any) -> None:
    out = printed(capsys, monkeypatch, Display("terminal", 200), epochs=3, verbose=2)
    assert len(re.findall(r"^8/8 - .* - host: \d+\.\d/[\d.]+ GiB$", out, re.MULTILINE)) == 3
    assert printed(capsys, monkeypatch, Display("terminal", 200), verbose=0) == ""


def test_a_data_set_of_unknown_length(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(console, "display", lambda: Display("log"))
    memfit.fit(small_model(), ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 64, 8)), epochs=1)
    out = capsys.readouterr().out
    assert re.search(r"^\d/unknown - loss: .* - host: ", out, re.MULTILINE)
    assert re.search(r"^8/8 - .*host: ", out, re.MULTILINE)


def test_history_and_the_users_callbacks_see_no_more_than_ever() -> None:
    seen: list[set[str]] = []
    watching = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(set(logs)))
    history = memfit.fit(small_model(), X, Y, batch_size=8, validation_split=0.25, callbacks=watching)
    assert set(history.history) == {"loss", "mae", "val_loss", "val_mae"}
    assert seen == [{"loss", "mae"}] * 6


def test_batches_whose_ends_come_out_of_order_do_not_turn_the_bar_back(capsys: Any) -> None:
    bar = MemoryProgress(lambda: Reading(2 * GIB, None, "scripted"), Budget(8 * GIB, "", None, ""))
    bar.set_params({"verbose": 1, "epochs": 1, "steps": None})
    bar.on_epoch_begin(0)
    for batch in (0, 3, 1):
        bar.on_train_batch_end(batch, {"loss": 1.0})
    assert bar.seen == 4
    bar.on_epoch_end(0, {"loss": 1.0})
    assert bar.target == 4


def test_a_progress_bar_of_the_users_stays_the_only_one(capsys: Any) -> None:
    memfit.fit(small_model(), X, Y, batch_size=8, callbacks=[keras.callbacks.ProgbarLogger()])
    assert "host:" not in capsys.readouterr().out


def test_device_memory_stands_beside_the_hosts() -> None:
    bar = MemoryProgress(lambda: Reading(2 * GIB, 3 * GIB, "scripted"), Budget(8 * GIB, "", 15 * GIB, ""))
    assert {name: str(value) for name, value in bar._memory().items()} == {"host": "2.0/8 GiB", "device": "3.0/15 GiB"}
    assert str(bar._within(75, {"loss": 1.0})["memory"]) == "20%"
