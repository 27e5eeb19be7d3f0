"""``memfit.data.image_folder`` in ``fit``, ``evaluate`` and ``predict`` of whichever backend KERAS_BACKEND names."""

from __future__ import annotations

import doctest
import os
import pathlib
import pickle
import random
import subprocess
import sys
import threading
import tracemalloc
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import memfit.data
from memfit import errors
from memfit.data import image_pipeline

NUM_FILES = 45
SIZE = (24, 20)


def color_of(number: int) -> tuple[int, int, int]:
    """Every file has a colour of its own, by which it is recognized in a batch."""
    return number, 255 - number, 7 * number % 256


def write(folder: pathlib.Path, num_files: int = NUM_FILES) -> pathlib.Path:
    """Files 0, 1, 2, ... of one colour each; the class of number n is n % 3."""
    for name in ("ants", "bees", "cats"):
        (folder / name).mkdir(parents=True)
    for number in range(num_files):
        image = Image.new("RGB", (SIZE[1], SIZE[0]), color_of(number))
        image.save(folder / ("ants", "bees", "cats")[number % 3] / f"{number:03d}.png")
    return folder


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "images")


def numbers(images: Any) -> list[int]:
    """Which files a batch holds."""
    return [round(float(pixel)) for pixel in np.asarray(images)[:, 0, 0, 0]]


def load(folder: pathlib.Path, **options: Any) -> Any:
    return memfit.data.image_folder(folder, **{"image_size": SIZE, "batch_size": 8, "seed": 3, **options})


def path_of(folder: pathlib.Path, number: int) -> pathlib.Path:
    return next(folder.glob(f"*/{number:03d}.png"))


def damage(folder: pathlib.Path, *chosen: int) -> None:
    for number in chosen:
        path = path_of(folder, number)
        path.write_bytes(path.read_bytes()[:40])


@keras.saving.register_keras_serializable("memfit_tests")
class Witness(keras.metrics.Metric):
    """Sums what the model is shown: how often each file came, and in which step."""

    def __init__(self, name: str = "witness", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.seen = self.add_weight(shape=(256,), initializer="zeros", name="seen")
        self.last = self.add_weight(shape=(256,), initializer="zeros", name="last")
        self.steps = self.add_weight(shape=(), initializer="zeros", name="steps")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        hits = keras.ops.sum(keras.ops.one_hot(keras.ops.cast(keras.ops.round(y_pred[:, 0]), "int32"), 256), axis=0)
        self.steps.assign_add(1.0)
        self.seen.assign_add(hits)
        self.last.assign(keras.ops.where(hits > 0, self.steps + 0.0, self.last + 0.0))

    def result(self) -> Any:
        return keras.ops.sum(self.seen)


class EpochRecord(keras.callbacks.Callback):
    """What the witness saw in each epoch: counts by file, and the step that each file last came in."""

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self.witness = witness
        self.counts: list[np.ndarray] = []
        self.steps: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.counts.append(keras.ops.convert_to_numpy(self.witness.seen))
        self.steps.append(keras.ops.convert_to_numpy(self.witness.last))


def witness_model() -> tuple[Any, Witness]:
    """A model whose output is the number of each file; built anew, so that ``fit`` has to build its metrics."""
    inputs = keras.Input((*SIZE, 3))
    outputs = keras.layers.Lambda(lambda images: images[:, 0, 0, :1])(inputs)
    model = keras.Model(inputs, outputs)
    witness = Witness()
    model.compile(loss="mse", metrics=[witness])
    return model, witness


def watch(dataset: Any, *, epochs: int, **options: Any) -> EpochRecord:
    model, witness = witness_model()
    record = EpochRecord(witness)
    model.fit(dataset, epochs=epochs, verbose=0, callbacks=[record], **options)
    return record


def classifier(**compile_options: Any) -> Any:
    layers = [keras.Input((*SIZE, 3)), keras.layers.Rescaling(1 / 255), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **compile_options)
    return model


# What a data set says of itself.


def test_attributes(folder: pathlib.Path) -> None:
    dataset = load(folder)
    assert dataset.class_names == ["ants", "bees", "cats"]
    assert dataset.class_indices == {"ants": 0, "bees": 1, "cats": 2}
    assert (dataset.num_samples, dataset.num_batches, len(dataset), dataset.batch_size) == (45, 6, 6, 8)
    assert (dataset.seed, dataset.epoch, dataset.skipped) == (3, 0, ())
    assert dataset.file_paths == sorted(str(path) for path in folder.glob("*/*.png"))
    assert dataset.labels.tolist() == [0] * 15 + [1] * 15 + [2] * 15
    assert "45 images of 3 classes, 6 batches of 8 x 24 x 20 x 3" in repr(dataset)
    assert isinstance(dataset, keras.utils.PyDataset)


@pytest.mark.parametrize(("label_mode", "shape", "dtype"), [("int", (8,), "int32"), ("categorical", (8, 3), "float32")])
def test_labels_match_images(folder: pathlib.Path, label_mode: str, shape: tuple[int, ...], dtype: str) -> None:
    for images, labels in load(folder, label_mode=label_mode):
        assert (images.dtype, labels.dtype) == ("float32", dtype)
        assert labels.shape == (len(images), *shape[1:])
        classes = labels.argmax(-1) if label_mode == "categorical" else labels
        assert classes.tolist() == [number % 3 for number in numbers(images)]
        for image, number in zip(images, numbers(images), strict=True):
            np.testing.assert_array_equal(image, np.broadcast_to(np.float32(color_of(number)), image.shape))


def test_binary_labels_and_none(folder: pathlib.Path) -> None:
    images, labels = load(folder, label_mode="binary", class_names=["cats", "ants"])[0]
    assert (labels.shape, str(labels.dtype)) == ((8, 1), "float32")
    assert labels[:, 0].tolist() == [float(number % 3 == 0) for number in numbers(images)]
    assert load(folder, label_mode=None)[0].shape == (8, *SIZE, 3)


def test_images_without_classes(folder: pathlib.Path) -> None:
    dataset = load(folder / "ants", label_mode=None, shuffle=False)
    assert (dataset.class_names, dataset.num_samples) == ([], 15)
    assert numbers(dataset[0]) == list(range(0, 24, 3))


@pytest.mark.parametrize(("color_mode", "channels"), [("rgb", 3), ("grayscale", 1), ("rgba", 4)])
def test_color_modes(folder: pathlib.Path, color_mode: str, channels: int) -> None:
    images, _ = load(folder, color_mode=color_mode, image_size=(10, 12), rescale=1 / 255)[0]
    assert images.shape == (8, 10, 12, channels)
    assert 0 < images.max() <= 1


def test_single_classes_and_empty_ones_are_errors_unless_they_are_named(folder: pathlib.Path) -> None:
    with pytest.warns(UserWarning, match=r"a single class in .*\['bees'\]"):
        load(folder, class_names=["bees"])
    (folder / "dogs").mkdir()
    with pytest.raises(errors.ArgumentError, match=r"no images in 1 class folders .*\['dogs'\]. Pass `class_names`"):
        load(folder)
    names = ["ants", "bees", "cats", "dogs"]
    with pytest.warns(UserWarning, match=r"no images in 1 class folders .*\['dogs'\]"):
        assert load(folder, class_names=names).class_names == names
    with pytest.raises(
        errors.ArgumentError, match=r"a single class in .*\['only'\]. .*Was a folder above or below meant"
    ):
        load(write(folder / "above" / "only").parent)


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(image_pipeline)
    assert results.attempted >= 5
    assert results.failed == 0


# The order of samples.


@pytest.mark.parametrize("batch_size", [1, 7, 8, 45, 100])
def test_each_sample_comes_once_an_epoch_and_epochs_differ(folder: pathlib.Path, batch_size: int) -> None:
    dataset = load(folder, batch_size=batch_size)
    epochs = [[number for images, _ in dataset for number in numbers(images)] for _ in range(3)]
    assert dataset.epoch == 2
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_FILES))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_batch_is_a_function_of_epoch_and_index(folder: pathlib.Path) -> None:
    dataset = load(folder)
    in_turn = [numbers(images) for images, _ in dataset]
    assert [numbers(dataset[index][0]) for index in (5, 0, 3, 3, -1)] == [in_turn[i] for i in (5, 0, 3, 3, 5)]
    dataset.epoch = 4
    later = [numbers(dataset[index][0]) for index in range(6)]
    assert later != in_turn
    dataset.epoch = 0
    assert [numbers(images) for images, _ in dataset] == in_turn
    with pytest.raises(IndexError):
        dataset[6]


def test_looking_at_batches_is_not_an_epoch(folder: pathlib.Path) -> None:
    dataset = load(folder)
    looked_at = [numbers(dataset[index][0]) for index in range(6)]
    assert [numbers(images) for images, _ in dataset] == looked_at
    assert dataset.epoch == 0
    two_batches = load(folder, batch_size=30)
    watch(two_batches, epochs=2)
    assert two_batches.epoch == 1


def test_threads_may_ask_for_batches_at_once(folder: pathlib.Path) -> None:
    dataset = load(folder)
    expected = [numbers(dataset[index][0]) for index in range(6)]
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda index=index: found.update({index: numbers(dataset[index][0])}))
        for index in (3, 0, 5, 1, 4, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(6)] == expected


def test_the_result_does_not_depend_on_workers_or_queue(folder: pathlib.Path) -> None:
    damage(folder, 4, 5, 17)
    runs = []
    for workers, max_queue_size in [(1, 0), (1, 2), (2, 1), (7, 4)]:
        dataset = load(folder, workers=workers, max_queue_size=max_queue_size)
        with pytest.warns(UserWarning, match="memfit skips"):
            runs.append([numbers(images) for _ in range(2) for images, _ in dataset])
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_no_seed_follows_set_random_seed(folder: pathlib.Path) -> None:
    seeds = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        seeds.append(load(folder, seed=None).seed)
    assert seeds[0] == seeds[1] != seeds[2]


def test_without_shuffling_files_come_in_order(folder: pathlib.Path) -> None:
    dataset = load(folder, shuffle=False)
    for _ in range(2):
        found = [number for images, _ in dataset for number in numbers(images)]
        assert found == [int(pathlib.Path(path).stem) for path in dataset.file_paths]


@pytest.mark.parametrize("seed", [None, 5])
def test_subsets_do_not_overlap_and_validation_keeps_its_order(folder: pathlib.Path, seed: int | None) -> None:
    training, validation = load(folder, validation_split=0.2, subset="both", seed=seed)
    alone = load(folder, validation_split=0.2, subset="validation", seed=seed)
    assert (training.num_samples, validation.num_samples) == (36, 9)
    assert sorted(training.file_paths + validation.file_paths) == sorted(map(str, folder.glob("*/*.png")))
    assert alone.file_paths == validation.file_paths
    assert np.bincount(validation.labels).tolist() == [3, 3, 3]
    for _ in range(2):
        assert [label for _, labels in validation for label in labels] == validation.labels.tolist()
    assert validation.file_paths != load(folder, validation_split=0.2, subset="validation", seed=6).file_paths


# In Keras.


def test_fit_evaluate_predict(folder: pathlib.Path) -> None:
    training, validation = load(folder, validation_split=0.2, subset="both")
    model = classifier()
    history = model.fit(training, validation_data=validation, epochs=2, verbose=0)
    assert len(history.history["val_accuracy"]) == 2
    assert np.isfinite(history.history["loss"]).all()
    loss, accuracy = model.evaluate(validation, verbose=0)
    predictions = model.predict(validation, verbose=0)
    assert predictions.shape == (9, 3)
    assert accuracy == pytest.approx(np.mean(predictions.argmax(-1) == validation.labels))
    assert np.isfinite(loss)


def test_fit_shows_each_file_once_an_epoch_whatever_building_the_model_takes(folder: pathlib.Path) -> None:
    dataset = load(folder)
    record = watch(dataset, epochs=4)
    for counts in record.counts:
        assert counts[:NUM_FILES].tolist() == [1] * NUM_FILES
        assert counts[NUM_FILES:].sum() == 0
    assert dataset.epoch == 3
    dataset.epoch = 0
    partners = [set(map(tuple, sorted_batches(record, epoch))) for epoch in range(4)]
    assert partners[0] == {tuple(sorted(numbers(dataset[index][0]))) for index in range(6)}
    assert partners[0] != partners[1]


def sorted_batches(record: EpochRecord, epoch: int) -> list[list[int]]:
    steps = record.steps[epoch][:NUM_FILES]
    return [np.flatnonzero(steps == step).tolist() for step in range(1, int(steps.max()) + 1)]


def test_two_runs_with_one_seed_feed_the_same_batches(folder: pathlib.Path) -> None:
    first, second, other = (watch(load(folder, seed=seed), epochs=2, shuffle=False) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.steps, second.steps)
    assert not np.array_equal(first.steps, other.steps)
    assert not np.array_equal(first.steps[0], first.steps[1])


def test_a_second_fit_goes_on_with_the_next_epoch(folder: pathlib.Path) -> None:
    whole = watch(load(folder), epochs=3, shuffle=False)
    dataset = load(folder)
    parts = watch(dataset, epochs=2, shuffle=False).steps + watch(dataset, epochs=1, shuffle=False).steps
    np.testing.assert_array_equal(whole.steps, parts)


def test_an_epoch_can_be_resumed(folder: pathlib.Path) -> None:
    whole = watch(load(folder), epochs=3, shuffle=False)
    dataset = load(folder)
    dataset.epoch = 2
    np.testing.assert_array_equal(watch(dataset, epochs=1, shuffle=False).steps[0], whole.steps[2])


def test_fit_decodes_each_file_once_an_epoch_though_it_shuffles_batches(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load(folder)
    watch(dataset, epochs=1)
    reads: list[str] = []
    read = dataset.source.reader.pixels
    monkeypatch.setattr(dataset.source.reader, "pixels", lambda path: reads.append(path) or read(path))
    model, _ = witness_model()
    model.fit(dataset, epochs=1, verbose=0)  # Builds the model, which takes batches of its own.
    reads.clear()
    random.seed(0)
    model.fit(dataset, epochs=3, verbose=0)
    # TensorFlow reads two batches to learn their shapes, which may cost as many ahead.
    assert 3 * NUM_FILES <= len(reads) <= 3 * NUM_FILES + 4 * 8


def test_fewer_steps_than_batches(folder: pathlib.Path) -> None:
    dataset = load(folder)
    record = watch(dataset, epochs=2, steps_per_epoch=3, shuffle=False)
    # Keras goes on in the pass instead of restarting it: two short epochs are one pass.
    assert (record.counts[0] + record.counts[1])[:NUM_FILES].tolist() == [1] * NUM_FILES


def test_class_weight_and_none_labels(folder: pathlib.Path) -> None:
    classifier().fit(load(folder), class_weight={0: 1.0, 1: 2.0, 2: 0.5}, verbose=0)
    images_only = load(folder, label_mode=None, shuffle=False)
    assert classifier().predict(images_only, verbose=0).shape == (NUM_FILES, 3)


def test_a_data_set_can_be_sent_to_another_process(folder: pathlib.Path) -> None:
    dataset = load(folder)
    dataset.epoch = 2
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 2
    assert [numbers(images) for images, _ in copy] == [numbers(images) for images, _ in dataset]


# Broken files.


def test_a_broken_file_is_warned_about_once_and_skipped(folder: pathlib.Path) -> None:
    damage(folder, 10, 20)
    dataset = load(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record = watch(dataset, epochs=3)
    messages = sorted(str(warning.message) for warning in caught if "memfit skips" in str(warning.message))
    assert len(messages) == 2
    for message, number in zip(messages, (20, 10), strict=True):  # Class cats comes after bees.
        assert str(path_of(folder, number)) in message or str(path_of(folder, 30 - number)) in message
    assert sorted(file.path for file in dataset.skipped) == sorted(str(path_of(folder, n)) for n in (10, 20))
    for counts in record.counts:
        assert counts[10] == counts[20] == 0
        assert counts.sum() == NUM_FILES
        assert np.delete(counts[:NUM_FILES], [10, 20]).min() == 1
        assert [counts[n:NUM_FILES:3].sum() for n in range(3)] == [15, 15, 15]


def test_batches_are_the_same_before_and_after_a_file_is_known_to_be_broken(folder: pathlib.Path) -> None:
    damage(folder, *range(5, 40, 5))
    dataset = load(folder)
    with pytest.warns(UserWarning, match="memfit skips"):
        first = [(numbers(images), labels.tolist()) for images, labels in dataset]
    dataset.epoch = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [(numbers(images), labels.tolist()) for images, labels in dataset] == first
    assert all(label == number % 3 for batch in first for number, label in zip(*batch, strict=True))


def test_a_class_without_a_readable_file_is_replaced_by_others(folder: pathlib.Path) -> None:
    damage(folder, *range(1, NUM_FILES, 3))
    dataset = load(folder)
    with pytest.warns(UserWarning, match="memfit skips"):
        batches = [(numbers(images), labels.tolist()) for images, labels in dataset]
    assert sum(len(found) for found, _ in batches) == NUM_FILES
    assert all(
        label == number % 3 != 1 for found, labels in batches for number, label in zip(found, labels, strict=True)
    )


def test_empty_files_are_known_before_training(folder: pathlib.Path) -> None:
    path_of(folder, 6).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"memfit skips .*006\.png: the file is empty") as caught:
        training, validation = load(folder, validation_split=0.2, subset="both")
    assert len(caught) == 1
    assert training.num_samples + validation.num_samples == NUM_FILES - 1
    assert [file.reason for file in training.skipped] == ["the file is empty"]


@pytest.mark.filterwarnings("ignore:memfit skips")
def test_too_many_broken_files_end_training(folder: pathlib.Path) -> None:
    damage(folder, 10, 20, 30)
    dataset = load(folder, max_broken=2)
    # TensorFlow wraps what a data set raises in an error of its own.
    with pytest.raises(Exception, match=r"3 of 45 files cannot be read. Received: max_broken=2") as caught:
        classifier().fit(dataset, epochs=2, verbose=0)
    assert keras.backend.backend() == "tensorflow" or isinstance(caught.value, errors.MemfitError)


# Memory.


def test_memory_is_bounded_and_does_not_grow_with_the_folder(tmp_path: pathlib.Path) -> None:
    peaks = {}
    for num_files in (64, 256):
        folder = write(tmp_path / str(num_files), num_files)
        dataset = load(folder, image_size=(96, 96), workers=2)
        for _ in dataset:
            pass  # Once, for what Pillow and NumPy set up at their first use.
        tracemalloc.start()
        try:
            for _ in dataset:
                pass
            peaks[num_files] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        batch_bytes = 8 * 96 * 96 * 3 * 4
        assert 2 * batch_bytes < peaks[num_files] < dataset.peak_bytes < 8 * batch_bytes
    assert peaks[256] < 1.1 * peaks[64]


# Reads as many batches of a small folder first, for what libraries and their threads set up at their first use.
HELD = """
import sys
import memfit.data
from memfit import budgeting

def batches(folder, epochs):
    dataset = memfit.data.image_folder(folder, image_size=(32, 32), batch_size=32, workers=2, seed=0)
    for epoch in range(epochs):
        dataset.epoch = epoch
        for number, _ in enumerate(dataset):
            held.append(budgeting.reading().host_bytes)
            if number == 20:
                break
    return dataset

held = []
first = batches(sys.argv[1], 20)
held, before = [], budgeting.reading().host_bytes
dataset = batches(sys.argv[2], 2)
print(max(held) - before, dataset.peak_bytes)
"""


@pytest.mark.skipif(not hasattr(os, "link"), reason="many files are hard links of one")
def test_peak_bytes_bound_what_a_folder_of_many_files_takes(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for number in range(25_000):
        place = tmp_path / "many" / ("a", "b")[number % 2] / f"{number % 100:02d}"
        if number < 200:
            place.mkdir(parents=True, exist_ok=True)
        os.link(path_of(folder, number % 9), place / f"a-photo-of-something-{number:07d}.png")
    program = [sys.executable, "-c", HELD, str(folder), str(tmp_path / "many")]
    done = subprocess.run(
        program,
        env={**os.environ, "MEMFIT_CACHE_DIR": str(tmp_path / "kept")},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    taken, said = map(int, done.stdout.split())
    assert taken < said
    assert said < 60 * 25_000 + 4 * 2**20


def test_no_batch_is_held_between_epochs(folder: pathlib.Path) -> None:
    dataset = load(folder)
    model = classifier()
    model.fit(dataset, verbose=0)
    assert dataset._ahead._pending == {}


def test_no_more_than_the_queue_is_held_after_an_epoch_that_was_cut(folder: pathlib.Path) -> None:
    dataset = load(folder)
    # Keras' own threads may ask for batches ahead until the call has ended.
    classifier().predict(dataset, steps=2, verbose=0)
    assert len(dataset._ahead._pending) <= dataset.max_queue_size


def test_peak_bytes_grows_with_what_it_counts(folder: pathlib.Path) -> None:
    plain = load(folder).peak_bytes
    assert load(folder, batch_size=16).peak_bytes > plain
    assert load(folder, max_queue_size=5).peak_bytes > plain
    assert load(folder, workers=8).peak_bytes > load(folder, workers=1).peak_bytes
    assert load(folder, batch_size=1000).peak_bytes == load(folder, batch_size=NUM_FILES).peak_bytes
