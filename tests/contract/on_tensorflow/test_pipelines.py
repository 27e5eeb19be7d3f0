"""``tf.data`` pipelines: what their stages hold, and the same pipeline built again with smaller buffers."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from memfit.backends import pipelines as backend_pipelines
from memfit.backends.pipeline_records import ENDLESS, Change
from memfit.data import images_as_tf_data, pipelines, synthetic_images

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow's own pipelines", allow_module_level=True)

import tensorflow as tf

from memfit.backends.on_tensorflow import pipelines as tools

AUTOTUNE = tf.data.AUTOTUNE
MIB = 2**20


def image(number: Any) -> Any:
    """64 x 64 x 3 floats of 48 KiB, which tell their number."""
    return tf.fill((64, 64, 3), tf.cast(number, tf.float32)), number


def chain(num_samples: int = 100) -> Any:
    data = tf.data.Dataset.range(num_samples).map(image, num_parallel_calls=AUTOTUNE).cache()
    return data.shuffle(1000).batch(8).prefetch(AUTOTUNE)


def numbers(data: Any) -> list[int]:
    return [int(number) for _, batch in data for number in np.atleast_1d(batch)]


def kinds(data: Any) -> list[tuple[str, int | None]]:
    return [(stage.kind, stage.held_bytes) for stage in tools.stages(data) if stage.kind != "other"]


def test_stages_and_their_bytes() -> None:
    sample = 64 * 64 * 3 * 4 + 8
    found = kinds(chain())
    assert found[1:] == [
        ("cache", 100 * sample),
        ("shuffle", 100 * sample),
        ("batch", 8 * sample),
        ("prefetch", 16 * 8 * sample),
    ]
    assert all(stage.changeable for stage in tools.stages(chain())[1:])
    endless = tf.data.Dataset.range(3).repeat().cache()
    assert tools.stages(endless)[-1].capacity == ENDLESS


def test_sizes_that_shapes_do_not_tell_are_measured() -> None:
    def ragged(number: Any) -> Any:
        return tf.zeros((100 * (number + 1),), tf.float32)

    # Measured past the shuffle, whose buffer would be filled otherwise.
    calls: list[int] = []
    data = tf.data.Dataset.range(1000).map(
        lambda number: tf.ensure_shape(tf.numpy_function(lambda n: calls.append(1) or n, [number], tf.int64), ())
    )
    data = data.map(ragged).shuffle(1000).cache()
    stage = tools.stages(data)[-1]
    assert stage.kind == "cache"
    assert stage.element_bytes == 4 * 250
    assert len(calls) < 40
    strings = tf.data.Dataset.from_tensor_slices(["a" * 76] * 5).cache()
    assert tools.stages(strings)[-1].held_bytes == 500


def test_each_kind_of_stage_is_built_again_as_it_was(tmp_path: pathlib.Path) -> None:
    base = tf.data.Dataset.range(40).prefetch(1)
    options = tf.data.Options()
    options.deterministic = True
    cases = {
        "map": base.map(lambda n: n * 2),
        "parallel map": base.map(lambda n: n * 3, num_parallel_calls=2, deterministic=True),
        "filter": base.filter(lambda n: n % 2 == 0),
        "batch": base.batch(7, drop_remainder=True),
        "parallel batch": base.batch(7, num_parallel_calls=2),
        "padded batch": base.map(lambda n: tf.range(n % 5)).padded_batch(6, padding_values=tf.constant(9, tf.int64)),
        "shuffle": base.shuffle(40, seed=5),
        "shuffle each time alike": base.shuffle(40, seed=5, reshuffle_each_iteration=False),
        "cache": base.cache(str(tmp_path / "file")),
        "prefetch": base.prefetch(3),
        "options": base.with_options(options),
        "interleave": base.interleave(lambda n: tf.data.Dataset.range(n % 3), cycle_length=2, block_length=2),
        "parallel interleave": base.interleave(
            lambda n: tf.data.Dataset.range(n % 3), cycle_length=2, num_parallel_calls=2, deterministic=True
        ),
        "flat map": base.flat_map(lambda n: tf.data.Dataset.range(n % 3)),
        "repeat": base.repeat(2),
        "take": base.take(3),
        "skip": base.skip(3),
        "shard": base.shard(4, 1),
    }
    covered = set()
    for name, data in cases.items():
        whole = data.map(lambda *element: element if len(element) > 1 else element[0]).prefetch(9)
        # A change of the first stage makes every stage after it be applied again.
        again = tools.rebuilt(whole, (Change(1, "size", 2),), ram_budget=None)
        assert again.element_spec == whole.element_spec, name
        first, second = list(whole.as_numpy_iterator()), list(again.as_numpy_iterator())
        assert len(first) == len(second), name
        assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True)), name
        covered |= {tools._name(dataset) for dataset in tools._chain(whole)}
    assert set(tools._APPLY) <= covered


def test_a_pipeline_that_fits_is_the_same_object() -> None:
    data = tf.data.Dataset.range(10).cache().batch(2).prefetch(1)
    assert pipelines.bounded(data, 10 * MIB) == (data, ())
    assert pipelines.bounded(data, 10 * MIB)[0] is data


def test_a_cache_goes_to_a_file_and_a_buffer_becomes_smaller(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    data = chain()
    share = 3 * MIB
    small, findings = pipelines.bounded(data, share)
    held = sum(stage.held_bytes or 0 for stage in tools.stages(small))
    assert held <= share
    assert len(findings) == 3
    assert sorted(numbers(small)) == sorted(numbers(small)) == sorted(numbers(data)) == list(range(100))
    assert numbers(small) != numbers(small)
    folders = list(tmp_path.iterdir())
    assert list(folders[0].iterdir())
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert len(model.fit(small, epochs=2, verbose=0, steps_per_epoch=None).history["loss"]) == 2
    del small, model
    assert small_folders_are_gone(folders)


def small_folders_are_gone(folders: list[pathlib.Path]) -> bool:
    import gc

    gc.collect()
    return not any(folder.exists() for folder in folders)


def test_a_shuffle_of_images_comes_before_the_map() -> None:
    data = tf.data.Dataset.range(200).map(image).shuffle(200, seed=1).batch(4)
    moved, findings = pipelines.bounded(data, MIB)
    assert [stage.kind for stage in tools.stages(moved)][1:] == ["shuffle", "map", "batch"]
    assert len(findings) == 1
    assert sorted(numbers(moved)) == list(range(200))
    assert numbers(moved) != list(range(200))


def test_what_is_inside_of_a_zip_is_named() -> None:
    images = tf.data.Dataset.range(200).map(lambda n: image(n)[0]).cache()
    data = tf.data.Dataset.zip((images, tf.data.Dataset.range(200))).batch(4)
    same, findings = pipelines.bounded(data, MIB)
    assert same is data
    assert "most of it is `cache()`" in findings[0]
    assert "`.cache(filename)`" in findings[0]


def test_kerass_own_image_pipeline_with_a_cache_and_a_shuffle_of_batches(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))
    folder = synthetic_images.write_image_folder(tmp_path / "images", num_images=20, num_classes=2)
    data = keras.utils.image_dataset_from_directory(folder, image_size=(64, 64), batch_size=4, verbose=False)
    batch = 4 * 64 * 64 * 3 * 4
    small, findings = pipelines.bounded(data.cache().shuffle(1000).prefetch(AUTOTUNE), 8 * batch)
    assert "`prefetch(AUTOTUNE)`" in findings[0]
    assert any("`cache()`" in finding and "temporary file" in finding for finding in findings)
    batches = list(small.as_numpy_iterator())
    assert sum(len(labels) for _, labels in batches) == 20


def test_other_data_has_no_tools() -> None:
    assert backend_pipelines.tools_for(np.zeros(3)) is None
    assert backend_pipelines.tools_for(chain()) is tools


@pytest.mark.parametrize("cache", [None, "memory", "disk", "auto"])
def test_the_classic_chain_has_the_right_labels(
    tmp_path: pathlib.Path, cache: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))
    folder = synthetic_images.write_image_folder(tmp_path / "images", num_images=20, num_classes=2)
    ordered = images_as_tf_data(folder, image_size=(32, 24), batch_size=6, shuffle=False, cache=cache)
    assert ordered.class_names == ["checkerboards", "circles"]
    images, labels = (np.concatenate(parts) for parts in zip(*ordered.as_numpy_iterator(), strict=True))
    assert images.shape == (20, 32, 24, 3)
    assert labels.tolist() == [int("circles" in path) for path in ordered.file_paths]
    by_pixels = {pixels.tobytes(): label for pixels, label in zip(images, labels, strict=True)}
    shuffled = images_as_tf_data(folder, image_size=(32, 24), batch_size=6, seed=1, cache=cache)
    epochs = []
    for _ in range(2):
        batches = list(itertools.chain(*(zip(*batch, strict=True) for batch in shuffled.as_numpy_iterator())))
        assert {pixels.tobytes(): label for pixels, label in batches} == by_pixels
        epochs.append([pixels.tobytes() for pixels, _ in batches])
    assert epochs[0] != epochs[1]
