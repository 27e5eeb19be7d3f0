"""The contract of every loader of ``memfit.data``, on whichever backend KERAS_BACKEND names.

Each case has 45 samples. Sample i can be told from its batch, and belongs to class i % 3.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import memfit
from memfit import data, errors
from memfit.data import structure
from memfit.data.position import Position
from memfit.data.tfrecord_format import masked_crc
from memfit.profiling import batches as batches_of

NUM_SAMPLES = 45
BATCH = 8

Make = Callable[..., Any]
"""Called with a folder and the options of the loader, gives the data set."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A loader with data for it.

    Attributes:
        make: Gives the data set.
        number: From one sample's ``x`` to its number.
        model: A compiled model for its batches.
        in_order: Whether the samples lie in the order of their numbers.
    """

    make: Make
    number: Callable[[Any], int] = lambda x: round(float(x[0]))
    model: Callable[[], Any] = lambda: compiled(keras.Input((3,)), lambda inputs: inputs)
    in_order: bool = True


def compiled(inputs: Any, features: Callable[[Any], Any]) -> Any:
    outputs = keras.layers.Dense(3, activation="softmax")(features(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def matrix() -> np.ndarray:
    """float64, so that it has to be cast."""
    return np.stack([np.arange(NUM_SAMPLES), np.ones(NUM_SAMPLES), np.zeros(NUM_SAMPLES)], axis=1).astype(float)


def labels() -> np.ndarray:
    return np.arange(NUM_SAMPLES) % 3


def arrays_in_memory(folder: pathlib.Path, **options: Any) -> Any:
    return data.arrays(matrix(), labels(), **options)


def arrays_mapped(folder: pathlib.Path, **options: Any) -> Any:
    np.save(folder / "x.npy", matrix().astype("float32"))
    return data.arrays(np.load(folder / "x.npy", mmap_mode="r"), labels(), **options)


def arrays_hdf5(folder: pathlib.Path, **options: Any) -> Any:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=matrix(), chunks=(7, 3), compression="gzip")
        file["y"] = labels()
    file = h5py.File(folder / "x.h5", "r")
    return data.arrays(file["x"], file["y"], **options)


def arrays_zarr(folder: pathlib.Path, **options: Any) -> Any:
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(str(folder / "x.zarr"), shape=(NUM_SAMPLES, 3), chunks=(7, 3), dtype="float64")
    stored[:] = matrix()
    return data.arrays(zarr.open_array(str(folder / "x.zarr"), mode="r"), labels(), **options)


def arrays_sparse(folder: pathlib.Path, **options: Any) -> Any:
    sparse = pytest.importorskip("scipy.sparse")
    return data.arrays(sparse.csc_matrix(matrix()), labels(), **options)


def table_csv(folder: pathlib.Path, **options: Any) -> Any:
    for part, rows in enumerate(np.array_split(np.arange(NUM_SAMPLES), 3)):
        lines = [f"{row},1,0,{'abc'[row % 3]}" for row in rows]
        (folder / f"{part}.csv").write_text("\n".join(["number,one,zero,letter", *lines]) + "\n")
    return data.table(folder / "*.csv", label="letter", cache_dir=folder / "kept", **options)


def table_parquet(folder: pathlib.Path, **options: Any) -> Any:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(("number", "one", "zero"), matrix().T, strict=True)) | {"kind": labels()}
    parquet.write_table(arrow.table(columns), folder / "all.parquet", row_group_size=10)
    return data.table(folder, label="kind", cache_dir=folder / "kept", **options)


def example(row: int) -> bytes:
    """A tf.train.Example with "x", three floats, and "label", as TensorFlow writes it."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def feature(name: bytes, kind: int, values: bytes) -> bytes:
        return field(1, field(1, name) + field(2, field(kind, field(1, values))))

    x = feature(b"x", 2, np.array([row, 1, 0], "<f4").tobytes())
    return field(1, x + feature(b"label", 3, bytes([row % 3])))


def tfrecord(folder: pathlib.Path, **options: Any) -> Any:
    for part, rows in enumerate(np.array_split(np.arange(NUM_SAMPLES), 2)):
        framed = b""
        for row in rows.tolist():
            length = len(example(row)).to_bytes(8, "little")
            framed += length + masked_crc(length).to_bytes(4, "little") + example(row) + bytes(4)
        (folder / f"{part}.tfrecord").write_bytes(framed if part else gzip.compress(framed))
    return data.tfrecord(folder, {"x": ("float32", (3,)), "label": ("int64", ())}, label="label", **options)


class Samples:
    """A data set in the manner of torch."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, number: int) -> Any:
        return matrix()[number], int(labels()[number])


def indexed(folder: pathlib.Path, **options: Any) -> Any:
    return data.indexed(Samples(), **options)


def hugging_face(folder: pathlib.Path, **options: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"x": matrix().tolist(), "label": labels().tolist()})
    return data.indexed(made, x="x", y="label", **options)


def tfds(folder: pathlib.Path, **options: Any) -> Any:
    library = pytest.importorskip("tensorflow_datasets")

    class Numbers(library.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[name-defined, misc]
        VERSION = library.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self) -> Any:
            features = {
                "x": library.features.Tensor(shape=(3,), dtype=np.float32),
                "label": library.features.ClassLabel(num_classes=3),
            }
            return library.core.DatasetInfo(
                builder=self, features=library.features.FeaturesDict(features), supervised_keys=("x", "label")
            )

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for row in range(NUM_SAMPLES):
                yield row, {"x": matrix()[row].astype("float32"), "label": row % 3}

    return data.tfds(Numbers(data_dir=str(folder), file_format="array_record"), "train", **options)


def text_lines(folder: pathlib.Path, **options: Any) -> Any:
    """Line i is the number i and up to forty others."""
    lengths = np.random.default_rng(0).integers(0, 40, NUM_SAMPLES)
    lines = ["\n".join([" ".join([str(row), *["99"] * lengths[row]]), ""]) for row in range(NUM_SAMPLES)]
    (folder / "some.txt").write_text("\r\n".join(lines[:20]))
    (folder / "some_more.txt").write_text("".join(lines[20:]))
    return data.text(folder, labels=labels(), tokenizer=Numbered(), max_length=32, buckets=(8, 16, 32), **options)


class Numbered:
    def __call__(self, line: str) -> list[int]:
        return [int(word) + 1 for word in line.split()]


def text_model() -> Any:
    layers = keras.layers
    inputs = keras.Input((None,), dtype="int32")
    return compiled(inputs, lambda tokens: layers.GlobalAveragePooling1D()(layers.Embedding(128, 4)(tokens)))


def image_folder(folder: pathlib.Path, **options: Any) -> Any:
    for row in range(NUM_SAMPLES):
        (folder / "abc"[row % 3]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (row, 0, 0)).save(folder / "abc"[row % 3] / f"{row:02d}.png")
    return data.image_folder(folder, image_size=(6, 8), **options)


def image_model() -> Any:
    return compiled(keras.Input((6, 8, 3)), keras.layers.GlobalAveragePooling2D())


CASES = {
    "arrays": Case(arrays_in_memory),
    "arrays-mapped": Case(arrays_mapped),
    "arrays-hdf5": Case(arrays_hdf5),
    "arrays-zarr": Case(arrays_zarr),
    "arrays-sparse": Case(arrays_sparse),
    "table-csv": Case(table_csv),
    "table-parquet": Case(table_parquet),
    "tfrecord": Case(tfrecord),
    "indexed": Case(indexed),
    "indexed-huggingface": Case(hugging_face),
    "tfds": Case(tfds, in_order=False),
    "text": Case(text_lines, lambda x: int(x[0]) - 1, text_model),
    "image_folder": Case(image_folder, lambda x: round(float(x[0, 0, 0])), image_model, in_order=False),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Case:
    """A case whose ``make`` takes the options alone."""
    chosen = CASES[request.param]

    def make(**options: Any) -> Any:
        folder = pathlib.Path(tempfile.mkdtemp(dir=tmp_path))
        return chosen.make(folder, **{"batch_size": BATCH, **options})

    return dataclasses.replace(chosen, make=make)


def numbers(case: Case, batch: Any) -> list[int]:
    x = batch[0]
    return [case.number(sample_of(x, row)) for row in range(len(structure.leaves(x)[0]))]


def sample_of(x: Any, row: int) -> Any:
    return structure.mapped(lambda leaf: leaf[row], x)


def epoch_of(case: Case, dataset: Any) -> list[int]:
    return [number for batch in dataset for number in numbers(case, batch)]


def no_threads_left() -> bool:
    """Whether all threads of pipelines end; they are given a moment to."""
    for _ in range(100):
        if not any(thread.name.startswith("memfit-data") for thread in threading.enumerate()):
            return True
        time.sleep(0.05)
    return False


def test_the_length_and_the_shapes_are_known_before_anything_is_read(case: Case) -> None:
    dataset = case.make(seed=1)
    assert (dataset.num_samples, len(dataset), dataset.num_batches) == (NUM_SAMPLES, 6, 6)
    specs = structure.leaves(dataset.batch_spec)
    assert specs
    largest = [0] * len(specs)
    for batch in dataset:
        leaves = structure.leaves(batch)
        assert [str(leaf.dtype) for leaf in leaves] == [spec.dtype for spec in specs]
        assert all(leaf.flags.c_contiguous for leaf in leaves)
        largest = [max(most, leaf.size) for most, leaf in zip(largest, leaves, strict=True)]
    assert largest == [int(np.prod(spec.shape)) for spec in specs]
    assert dataset.peak_bytes >= 2 * sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in specs)


def test_each_epoch_is_a_permutation_whatever_the_workers_and_labels_stay_with_their_samples(case: Case) -> None:
    runs = []
    for workers, queue in [(0, 2), (1, 0), (2, 3), (5, 2)]:
        dataset = case.make(seed=3, workers=workers, max_queue_size=queue)
        epochs = []
        for _ in range(2):
            batches = list(dataset)
            assert all(batch[1].tolist() == [n % 3 for n in numbers(case, batch)] for batch in batches)
            epochs.append([numbers(case, batch) for batch in batches])
        assert all(sorted(itertools.chain(*epoch)) == list(range(NUM_SAMPLES)) for epoch in epochs)
        runs.append(epochs)
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert runs[0][0] != runs[0][1]
    assert runs[0][0] != [numbers(case, batch) for batch in case.make(seed=4)]


def test_without_shuffling_samples_come_in_their_order(case: Case) -> None:
    found = epoch_of(case, case.make(shuffle=False))
    assert found == epoch_of(case, case.make(shuffle=False))
    assert sorted(found) == list(range(NUM_SAMPLES))
    assert not case.in_order or found == list(range(NUM_SAMPLES))


def test_a_position_gives_exactly_the_rest_of_an_epoch(case: Case) -> None:
    whole = case.make(seed=5)
    epochs = [[numbers(case, batch) for batch in whole] for _ in range(3)]
    stopped = case.make(seed=5)
    list(stopped)
    taking = iter(stopped)
    for _ in range(2):
        next(taking)
    saved = json.dumps(dataclasses.asdict(stopped.state))
    taking.close()
    resumed = case.make(seed=99)  # The position brings the seed.
    resumed.restore(Position(**json.loads(saved)))
    assert len(resumed) == 4
    assert [numbers(case, batch) for batch in resumed] == epochs[1][2:]
    assert len(resumed) == 6
    assert [numbers(case, batch) for batch in resumed] == epochs[2]
    assert resumed.state == resumed.state_after(6)
    with pytest.raises(errors.ArgumentError, match="position is in 45 samples in batches of 8"):
        case.make(batch_size=9).restore(stopped.state)


def test_threads_end_with_the_pass(case: Case) -> None:
    dataset = case.make(workers=2)
    dataset[3]
    assert no_threads_left()
    for _ in dataset:
        pass
    assert no_threads_left()
    for _ in dataset:
        break
    assert no_threads_left()


def test_fit_trains_and_validates_on_it_and_leaves_no_threads(case: Case) -> None:
    training, validation = case.make(seed=0, validation_split=0.2, subset="both")
    assert (training.num_samples, validation.num_samples) == (36, 9)
    assert sorted(epoch_of(case, training) + epoch_of(case, validation)) == list(range(NUM_SAMPLES))
    model = case.model()
    plain = model.fit(training, validation_data=validation, verbose=0)
    assert np.isfinite(plain.history["val_loss"]).all()
    history = memfit.fit(model, training, validation_data=validation, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()
    assert model.predict(validation, verbose=0).shape == (9, 3)
    assert no_threads_left()


class Failing(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        raise ValueError("stop here")


def fail_on_sample_40(sample: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if sample[1] == 40:
        raise ValueError("sample 40 is broken")
    return sample


def test_training_that_fails_leaves_no_threads() -> None:
    x = np.arange(NUM_SAMPLES, dtype="float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    dataset = memfit.data.arrays(x[:, None], x, batch_size=8, workers=2)
    # The caught error is held: it keeps alive what was in use when it was raised.
    with pytest.raises(Exception, match="stop here") as by_callback:
        memfit.fit(model, dataset, callbacks=[Failing()], verbose=0)
    assert no_threads_left()
    samples = list(zip(x[:, None], x, strict=True))
    dataset = memfit.data.indexed(samples, transform=fail_on_sample_40, batch_size=8, workers=2)
    with pytest.raises(Exception, match="sample 40 is broken") as by_sample:
        model.fit(dataset, verbose=0)
    assert no_threads_left()
    del by_callback, by_sample


def test_memfit_plans_for_its_largest_batch(case: Case) -> None:
    dataset = case.make()
    found, arguments = batches_of.described({"x": dataset})
    assert (arguments["x"], found.batch_size, found.reading) == (dataset, BATCH, dataset.reading_bytes)
    assert found.spec[:2] == dataset.batch_spec[:2]
    x, y, _ = found.sample(3)
    assert (len(structure.leaves(x)[0]), len(y)) == (3, 3)
