"""What ``memfit.profile`` and ``memfit plan`` say of real models: categories, kinds of step, moments, what is kept."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit.backends import current
from memfit.cli import main
from memfit.errors import ArgumentError
from memfit.probing import trial
from memfit.probing.capped import run_capped
from memfit.profiling import batches, rate
from memfit.records import Estimate
from memfit.units import MIB

SCRIPT = """
import keras

def build():
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers])
    model.compile("adam", "mse")
    return model

def uncompiled():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

def any_length():
    layers = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((None, 8)), *layers])
    model.compile("sgd", "mse")
    return model
"""


def cnn() -> Any:
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers, keras.layers.Dense(4, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "estimates"


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "models_of_mine.py"
    path.write_text(SCRIPT)
    return str(path)


def test_categories_kinds_and_moment() -> None:
    model = cnn()
    profile = memfit.profile(model, batch_size=256)
    num_weights = model.count_params()
    assert (profile.weights, profile.gradients) == (4 * num_weights, 4 * num_weights)
    assert profile.optimizer_state >= 8 * num_weights
    assert profile.inputs >= 256 * 32 * 32 * 3 * 4
    assert profile.layers[0].kind == "Conv2D"
    assert profile.layers[0].bytes == 256 * 30 * 30 * 16 * 4
    train, test, predict = profile.peak, profile.validation_peak, profile.prediction_peak
    assert test is not None
    assert predict is not None
    assert predict.bytes <= 1.01 * test.bytes  # metrics are a few bytes, and the process' base moves
    assert test.bytes < train.bytes
    if train.moment is not None:
        assert train.moment.phase in ("forward", "backward", "update")
        assert train.moment.layer is None or train.moment.layer.split("/")[-1] in {layer.name for layer in model.layers}
    assert json.loads(profile.to_json())["validation_peak"]["bytes"] == test.bytes
    assert "one prediction step" in str(profile)


def test_the_same_model_is_analysed_once(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, asked = current(), []
    real = backend.step_bytes

    def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(type(backend), "step_bytes", lambda self, *arguments: counted(*arguments))
    keras.backend.clear_session()
    first = memfit.profile(cnn(), batch_size=64)
    num_files = len(list(cached.iterdir()))
    assert num_files == len(asked) == 3
    keras.backend.clear_session()  # the same names again
    again = memfit.profile(cnn(), batch_size=64)
    assert len(asked) == 3
    assert again.peak.source == first.peak.source
    memfit.profile(cnn(), batch_size=65)
    assert len(asked) > 3


def test_other_compile_arguments_are_another_model(cached: Path) -> None:
    sgd = cnn()
    sgd.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    memfit.profile(cnn(), batch_size=64)
    before = len(list(cached.iterdir()))
    memfit.profile(sgd, batch_size=64)
    assert len(list(cached.iterdir())) == before + 3


def test_a_model_that_cannot_be_described_is_not_kept(cached: Path) -> None:
    class Mine(keras.Model):
        def __init__(self, thing: Any) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Mine(object())
    model.compile("sgd", "mse")
    memfit.profile(model, np.ones((16, 8), "float32"), np.ones((16, 4), "float32"), batch_size=16)
    assert not cached.exists()


def test_plan_on_the_command_line(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{script}:build", "--batch-size", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["micro_batch_size"] is None
    assert 0 < found["step_peak_bytes"] < found["peak_bytes"]
    assert found["margin_bytes"] > 0
    assert found["seconds"] > 0
    assert main(["plan", f"{script}:build", "--batch-size", "64"]) == 0
    assert "The whole batch fits" in capsys.readouterr().out


def test_plan_of_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn().save(tmp_path / "model.keras")
    assert main(["plan", str(tmp_path / "model.keras"), "--batch-size", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_size"] == 64


def test_plan_under_a_budget_that_nothing_fits(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{script}:build", "--batch-size", "64", "--budget", "50 MiB", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"]
    assert "smallest budget" in found["does_not_fit"]


def test_plan_asks_for_a_bound(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{script}:any_length", "--batch-size", "8"]) == 2
    assert "--input-shape" in capsys.readouterr().err
    assert main(["plan", f"{script}:any_length", "--batch-size", "8", "--input-shape", "50,8", "--json"]) == 0
    assert main(["plan", f"{script}:any_length", "--batch-size", "8", "--input-shape", "50,9"]) == 2
    assert "do not fit the model's inputs" in capsys.readouterr().err


def test_plan_of_a_model_that_is_not_compiled(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{script}:uncompiled"]) == 2
    assert "not compiled" in capsys.readouterr().err


def test_a_model_without_inputs_asks_for_data() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ArgumentError, match="no inputs of known shape"):
        memfit.profile(model, batch_size=4)


def test_a_trial_confirms_the_plan_and_corrects_later_ones(cached: Path) -> None:
    model = cnn()
    x, y = np.zeros((128, 32, 32, 3), "float32"), np.zeros((128,), "int32")
    tried = memfit.plan(model, x, y, batch_size=64, probe=True, verbose=0)
    assert tried.peak is not None
    assert tried.peak.source == "probe"
    assert any("a trial in a child process peaked at" in reason for reason in tried.reasons)
    later = memfit.profile(model, x, y, batch_size=32)
    assert later.peak.source.endswith("corrected by a trial")


def test_a_trial_leaves_no_file_between_parent_and_child(
    cached: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    commands, files = [], []

    def looking(command: Any, *arguments: Any, **keywords: Any) -> Any:
        commands.append(command)
        files.extend(temporary.rglob("*"))
        run = run_capped(command, *arguments, **keywords)
        files.extend(path for path in temporary.rglob("*") if path.suffix in (".pickle", ".pkl", ".keras"))
        return run

    monkeypatch.setattr(trial, "run_capped", looking)
    x, y = np.zeros((64, 32, 32, 3), "float32"), np.zeros((64,), "int32")
    tried = memfit.plan(cnn(), x, y, batch_size=64, probe=True, verbose=0)
    assert tried.peak is not None
    assert tried.peak.source == "probe"
    assert files == []
    (command,) = commands
    assert command.argv[1:] == ["-m", "memfit.probing.trial_child"]
    assert len(command.input) < 64 * 1024  # the model as it is described, without its weights


def test_a_trial_that_needs_more_than_the_budget_gives_a_smaller_plan(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cnn()
    x, y = np.zeros((1024, 32, 32, 3), "float32"), np.zeros((1024,), "int32")
    whole = memfit.profile(model, x, y, batch_size=1024)
    step = whole.peak.bytes - whole.base.host_bytes

    def heavier(model: Any, spec: Any, split: Any, *, backend: Any, levers: Any = None) -> Estimate:
        samples = 1024 if split is None else split.micro_batch_size
        return Estimate(2 * step * samples // 1024, 0, trial.MEASURED)

    monkeypatch.setattr(trial, "step_bytes", heavier)
    budget = whole.peak.upper + 128 * MIB
    plan = memfit.plan(model, x, y, batch_size=1024, budget=budget, probe=True, verbose=0)
    assert plan.micro_batch_size is not None
    assert plan.peak is not None
    assert plan.peak.upper <= budget


@pytest.mark.parametrize(("arguments", "rest"), [({}, 10), ({"validation_split": 0.5}, 5), ({"batch_size": 70}, 0)])
def test_the_smaller_batch_that_an_epoch_ends_with_is_known(arguments: dict[str, Any], rest: int) -> None:
    found, _ = batches.described({"x": np.zeros((70, 3)), "y": np.zeros(70), "batch_size": 30, **arguments})
    assert found.rest == rest


def test_the_smaller_batch_that_a_data_set_ends_with_is_known() -> None:
    rows = np.zeros((70, 3), "float32"), np.zeros(70, "float32")
    found, _ = batches.described({"x": memfit.data.arrays(*rows, batch_size=30)})
    assert (found.batch_size, found.rest) == (30, 10)


@pytest.mark.skipif(current().device_memory() is not None, reason="small products do not fill a GPU")
def test_on_a_cpu_more_small_products_are_timed_instead_of_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def seconds(size: int, products: int) -> float:
        asked.append((size, products))
        return 2e-3 * products

    assert 1e9 < rate.matrix_rate() < 1e14
    monkeypatch.setattr(rate, "_seconds", seconds)
    found = rate.matrix_rate.__wrapped__()
    # What larger matrices take stays with the framework, out of a plan's room.
    assert asked == [(512, 1), (512, 4)]
    assert found == pytest.approx(2 * 512**3 / 2e-3)
