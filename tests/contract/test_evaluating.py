"""``memfit.predict`` and ``memfit.evaluate`` beside Keras' own: results, structures, files, refusals, failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends, evaluating
from memfit.errors import ArgumentError, DoesNotFitError, OutOfMemoryError
from memfit.predicting import Predictions
from memfit.records import Estimate, TensorSpec

RNG = np.random.default_rng(3)
X = RNG.normal(size=(37, 6)).astype("float32")
Y = RNG.normal(size=(37, 2)).astype("float32")
WEIGHTS = RNG.uniform(0.5, 2.0, size=(37,)).astype("float32")
BACKEND = keras.backend.backend()


def mlp(compiled: bool = True) -> Any:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])
    if compiled:
        model.compile("adam", "mse", metrics=["mae", keras.metrics.RootMeanSquaredError()])
    return model


def two_outputs(structure: str) -> Any:
    keras.utils.set_random_seed(2)
    x = keras.Input((6,))
    a, b = keras.layers.Dense(3)(x), keras.layers.Dense(2, dtype="float16")(x)
    return keras.Model(x, {"a": a, "b": b} if structure == "dict" else [a, b])


class InBatches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


def generator(with_targets: bool) -> Any:
    for start in range(0, 37, 8):
        yield (X[start : start + 8], Y[start : start + 8]) if with_targets else (X[start : start + 8],)


@pytest.fixture
def only_fits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the prediction say that more than so many samples do not fit."""

    def set_to(most: int) -> None:
        def limited(self: Any, kind: str, batch_size: int, ceiling: int) -> Any:
            return min(most, batch_size), Estimate(2**40, 0, "scripted")

        monkeypatch.setattr(Predictions, "forward_batch_size", limited)

    return set_to


def same(actual: Any, expected: Any) -> None:
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            a, b, rtol=1e-3 if a.dtype == "float16" else 1e-5, atol=1e-3 if a.dtype == "float16" else 1e-6
        )


# Predictions


@pytest.mark.parametrize("most", [37, 5, 1])
def test_predictions_of_arrays_are_those_of_model_predict(most: int, only_fits: Any) -> None:
    model = mlp()
    expected = model.predict(X, batch_size=16, verbose=0)
    only_fits(most)
    same(memfit.predict(model, X, batch_size=16, verbose=0), expected)
    same(model.predict(X, batch_size=16, verbose=0), expected)


@pytest.mark.parametrize("data", ["dataset", "generator"])
@pytest.mark.parametrize("most", [8, 3])
def test_predictions_of_datasets_in_parts(data: str, most: int, only_fits: Any) -> None:
    model = mlp(compiled=False)
    expected = model.predict(X, verbose=0)
    only_fits(most)
    same(memfit.predict(model, InBatches() if data == "dataset" else generator(False), verbose=0), expected)


def test_steps_are_the_callers_batches(only_fits: Any) -> None:
    only_fits(3)
    assert memfit.predict(mlp(), X, 8, 0, 2).shape == (16, 2)
    assert memfit.predict(mlp(), InBatches(), steps=2, verbose=0).shape == (16, 2)
    assert memfit.predict(mlp(), X, steps=99, verbose=0).shape == (37, 2)


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_structure_and_dtype_of_several_outputs(structure: str, tmp_path: Path) -> None:
    model = two_outputs(structure)
    expected = model.predict(X, batch_size=8, verbose=0)
    same(memfit.predict(model, X, batch_size=8, verbose=0), expected)
    same(memfit.predict(model, X, batch_size=8, verbose=0, out=tmp_path / "out"), expected)
    names = ["a.npy", "b.npy"] if structure == "dict" else ["0.npy", "1.npy"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    with pytest.raises(ArgumentError, match="must be a folder"):
        memfit.predict(model, X, verbose=0, out=tmp_path / "one.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_step_of_a_model_that_was_never_compiled_is_analysed() -> None:
    model = mlp(compiled=False)
    spec = (TensorSpec((16, 6), "float32"), None, None)
    found = backends.current().step_bytes(model, spec, None, "predict")
    assert found is None or found.bytes > 0
    np.testing.assert_allclose(memfit.predict(model, X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


def test_predictions_are_written_to_a_file(tmp_path: Path) -> None:
    model, path = mlp(), tmp_path / "predictions.npy"
    path.write_bytes(b"what was there")
    result = memfit.predict(model, X, batch_size=8, verbose=0, out=str(path))
    expected = model.predict(X, batch_size=8, verbose=0)
    same(result, expected)
    assert isinstance(result, np.memmap)
    same(np.load(path), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npy"]


class Fails(keras.callbacks.Callback):
    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            raise KeyError("mine")


def test_a_failed_call_leaves_the_file_that_was_there_and_the_model(tmp_path: Path) -> None:
    model, path = mlp(), tmp_path / "predictions.npy"
    expected = model.predict(X, verbose=0)
    path.write_bytes(b"what was there")
    with pytest.raises(KeyError, match="mine"):
        memfit.predict(model, X, batch_size=8, verbose=0, out=path, callbacks=[Fails()])
    assert path.read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 1
    same(model.predict(X, verbose=0), expected)
    assert "Around" not in type(model.predict_function).__name__


def test_predictions_that_do_not_fit_become_a_file_without_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluating, "_HELD_SHARE", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(evaluating.psutil, "disk_partitions", lambda **_: [])
    model = mlp()
    result = memfit.predict(model, X, batch_size=8, verbose=0)
    assert isinstance(result, np.memmap)
    same(result, model.predict(X, batch_size=8, verbose=0))
    result += 1
    assert list(tmp_path.iterdir()) == []
    same(memfit.predict(model, generator(False), verbose=0), model.predict(X, verbose=0))


def test_there_is_no_room_in_memory_or_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = type("Disk", (), {"free": 100})()
    monkeypatch.setattr(evaluating.shutil, "disk_usage", lambda folder: disk)
    with pytest.raises(DoesNotFitError, match=r"take 296 B, and .* has 100 B free"):
        memfit.predict(mlp(), X, verbose=0, out=tmp_path / "predictions.npy")
    mount = type("Mount", (), {"mountpoint": "/", "fstype": "tmpfs"})()
    monkeypatch.setattr(evaluating.psutil, "disk_partitions", lambda **_: [mount])
    monkeypatch.setattr(evaluating, "_HELD_SHARE", 0.0)
    with pytest.raises(DoesNotFitError, match="is in memory as well"):
        memfit.predict(mlp(), X, verbose=0)
    with pytest.raises(ArgumentError, match="in a folder that is there"):
        memfit.predict(mlp(), X, verbose=0, out=tmp_path / "none" / "predictions.npy")


class Seen(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Any] = []
        self.ended = 0

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.outputs.append(keras.ops.convert_to_numpy((logs or {})["outputs"]))

    def on_predict_end(self, logs: Any = None) -> None:
        self.ended += 1


def test_callbacks_see_the_outputs_of_each_batch(capsys: pytest.CaptureFixture[str]) -> None:
    seen, plain = Seen(), Seen()
    model = mlp()
    memfit.predict(model, X, 16, callbacks=[seen], verbose=2)
    model.predict(X, 16, callbacks=[plain], verbose=0)
    assert seen.ended == 1
    for a, b in zip(seen.outputs, plain.outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "3/3" in capsys.readouterr().out


def test_a_subclassed_model_that_was_never_called_is_predicted() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2, kernel_initializer="ones")

        def call(self, x: Any) -> Any:
            return self.dense(x)

    same(memfit.predict(Own(), X, verbose=0), Own().predict(X, verbose=0))


def test_large_arrays_are_fed_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.backends import array_feed
    from memfit.executing import feeding

    monkeypatch.setattr(feeding, "COPY_LIMIT", 0)
    fed: list[int] = []
    gather = array_feed.ArrayFeed.gather
    monkeypatch.setattr(array_feed.ArrayFeed, "gather", lambda self, i: fed.append(len(i)) or gather(self, i))
    model, x = mlp(), X.astype("float64")
    same(memfit.predict(model, x, batch_size=8, verbose=0), model.predict(x, batch_size=8, verbose=0))
    assert fed.count(8) == 4


@pytest.mark.parametrize("batch_size", [0, -3, True, 2.5])
def test_bad_batch_sizes_are_refused(batch_size: Any) -> None:
    with pytest.raises(ArgumentError, match="whole number of samples"):
        memfit.predict(mlp(), X, batch_size=batch_size)


def test_a_model_of_which_one_sample_does_not_fit_is_refused(only_fits: Any) -> None:
    only_fits(0)
    with pytest.raises(DoesNotFitError, match=r"one sample at a time needs 1 TiB"):
        memfit.predict(mlp(), X)
    with pytest.raises(DoesNotFitError, match=r"Evaluation does not fit"):
        memfit.evaluate(mlp(), X, Y)


def test_one_sample_is_not_refused_for_the_margin_of_its_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain Keras would predict; there is nothing smaller to fall back on."""
    monkeypatch.setattr(Predictions, "forward_batch_size", lambda *_: (0, Estimate(1, 2**50, "scripted")))
    model = mlp()
    same(memfit.predict(model, X), model.predict(X, verbose=0))
    assert "without the margin" in capsys.readouterr().err


# Evaluation


@pytest.mark.parametrize("most", [16, 5])
@pytest.mark.parametrize("return_dict", [True, False])
def test_metrics_are_those_of_model_evaluate(most: int, return_dict: bool, only_fits: Any) -> None:
    model = mlp()
    arguments = {"batch_size": 16, "verbose": 0, "return_dict": return_dict, "sample_weight": WEIGHTS}
    expected = model.evaluate(X, Y, **arguments)
    only_fits(most)
    actual = memfit.evaluate(model, X, Y, **arguments)
    keras.tree.assert_same_structure(actual, expected)
    np.testing.assert_allclose(keras.tree.flatten(actual), keras.tree.flatten(expected), rtol=1e-5)


@pytest.mark.parametrize("data", ["dataset", "generator"])
def test_datasets_are_evaluated_in_parts(data: str, only_fits: Any) -> None:
    model = mlp()
    expected = model.evaluate(X, Y, verbose=0)
    only_fits(3)
    actual = memfit.evaluate(model, InBatches() if data == "dataset" else generator(True), verbose=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    model.fit(X, Y, verbose=0)


# Out of memory


class Broken:
    """Around a step: fails where more samples than so many go through together, as an allocator would."""

    def __init__(self, inner: Any, most: int, met: list[int]) -> None:
        self.inner, self.most, self.met = inner, most, met

    def __call__(self, *arguments: Any) -> Any:
        *state, data = arguments
        batch = next(data) if hasattr(data, "__next__") else data[0]
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        self.met.append(len(x))
        if len(x) > self.most:
            raise MemoryError(f"{len(x)} samples")
        return self.inner(*state, iter([batch]) if hasattr(data, "__next__") else [batch])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The steps of a model fail from so many samples on, and the process survives that."""

    def set_to(model: Any, kind: str, most: int) -> list[int]:
        met: list[int] = []
        make = getattr(model, f"make_{kind}_function")

        def broken(force: bool = False) -> None:
            make(force)
            function = getattr(model, f"{kind}_function")
            if isinstance(function, (Broken, type(None))) or "Around" in type(function).__name__:
                return
            setattr(model, f"{kind}_function", Broken(function, most, met))

        object.__setattr__(model, f"make_{kind}_function", broken)
        object.__setattr__(model, "run_eagerly", True)  # JAX: Keras' own function is called
        return met

    monkeypatch.setattr(type(backends.current()), "survives_on_host", True)
    return set_to


@pytest.mark.parametrize("kind", ["predict", "test"])
def test_a_batch_that_runs_out_of_memory_goes_through_in_smaller_parts(failing: Any, kind: str) -> None:
    model, plain = mlp(), mlp()
    met = failing(model, kind, 5)
    if kind == "predict":
        same(memfit.predict(model, X, batch_size=16, verbose=0), plain.predict(X, batch_size=16, verbose=0))
    else:
        expected = plain.evaluate(X, Y, batch_size=16, verbose=0)
        np.testing.assert_allclose(memfit.evaluate(model, X, Y, batch_size=16, verbose=0), expected, rtol=1e-5)
    assert met[:3] == [16, 8, 4]
    assert max(met[3:]) == 4


def test_where_not_even_one_sample_fits_the_error_says_so(failing: Any) -> None:
    model = mlp()
    failing(model, "predict", 0)
    with pytest.raises(OutOfMemoryError, match="Not even one sample"):
        memfit.predict(model, X, verbose=0)
    assert all(np.isfinite(weights).all() for weights in model.get_weights())


def test_examples_run() -> None:
    import doctest

    results = doctest.testmod(evaluating)
    assert results.attempted
    assert not results.failed


def test_a_validation_batch_of_its_own_is_planned(only_fits: Any) -> None:
    only_fits(5)
    sizes: list[int] = []

    class Validated(keras.callbacks.Callback):
        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            sizes.append(batch)

    model, plain = mlp(), mlp()
    arguments = {
        "batch_size": 4,
        "validation_data": (X, Y),
        "validation_batch_size": 37,
        "verbose": 0,
        "shuffle": False,
    }
    ours = memfit.fit(model, X[:8], Y[:8], **arguments, callbacks=[Validated()])
    expected = plain.fit(X[:8], Y[:8], **arguments)
    assert ours.memfit.plan.validation_batch_size == 5
    assert max(sizes) == 7
    np.testing.assert_allclose(ours.history["val_loss"], expected.history["val_loss"], rtol=1e-5)
