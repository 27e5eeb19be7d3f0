"""What single loaders of ``memfit.data`` promise beyond the contract of all: the kept file of a table, cut-off records, ..."""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import tracemalloc
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import data, errors
from memfit.data import table_rows
from memfit.data.tfrecord_format import masked_crc

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "data.md"


def test_the_guide_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not GUIDE.exists():
        pytest.skip("an installed package has no guides")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(GUIDE), "exec"), names)


# Arrays.


@pytest.mark.parametrize("split", [{}, {"validation_split": 0.5, "subset": "training"}])
def test_the_order_of_millions_of_samples_takes_no_memory(split: dict[str, Any]) -> None:
    num = 9_000_000
    dataset = data.arrays(np.broadcast_to(np.float32(1), (num, 2)), batch_size=64, seed=1, **split)
    tracemalloc.start()
    try:
        for epoch in range(2):
            dataset.epoch = epoch
            for index in (0, 7, len(dataset) - 1):
                assert len(dataset[index]) in (64, num % 64, dataset.num_samples % 64)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert dataset.reading_bytes < 2**24


def test_dicts_and_lists_sparse_rows_weights_and_one_hot() -> None:
    x = {"a": np.arange(6.0), "b": [np.arange(12).reshape(6, 2), np.ones((6, 1), "float16")]}
    dataset = data.arrays(x, [0, 2, 1, 0, 2, 1], np.arange(6), batch_size=4, one_hot=3, shuffle=False)
    features, labels, weights = dataset[1]
    assert features["a"].tolist() == [4, 5]
    assert [features["a"].dtype, features["b"][0].dtype, features["b"][1].dtype] == ["float32", "int64", "float32"]
    assert features["b"][0].tolist() == [[8, 9], [10, 11]]
    assert labels.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert weights.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((4, 2)), np.zeros(3)), {}, "same number of samples. Received: x: 4, y: 3"),
        (({"a": np.zeros(4), "b": np.zeros(3)},), {}, r"x\['a'\]: 4, x\['b'\]: 3"),
        ((np.zeros((0, 2)),), {}, "0 samples"),
        ((np.array(["a", "b"]),), {}, "`x` must be an array of numbers.*memfit.data.text"),
        ((np.zeros(3), np.array([0, 1, 5])), {"one_hot": 5}, "one_hot=5 and labels from 0 to 5 in y"),
        ((np.zeros(3), np.zeros(3)), {"one_hot": 5}, "`one_hot` needs one integer a sample"),
        ((np.zeros(3),), {"one_hot": 5}, "`one_hot` needs one array of labels.* no y"),
        ((np.zeros(3), None, np.ones(3)), {}, "`sample_weight` weighs targets"),
    ],
)
def test_arrays_that_cannot_be_fed(arguments: tuple[object, ...], options: dict[str, int], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        data.arrays(*arguments, **options)  # type: ignore[arg-type]


def test_classes_are_split_evenly_and_a_contiguous_hdf5_data_set_is_mapped(tmp_path: pathlib.Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(200.0).reshape(100, 2)
    file = h5py.File(tmp_path / "x.h5", "r")
    training, validation = data.arrays(
        file["x"], np.repeat([0, 1], [80, 20]), validation_split=0.1, subset="both", seed=0, shuffle=False
    )
    assert isinstance(training.source._columns[0].array, np.memmap)
    assert [int(labels.sum()) for _, labels in validation] == [2]
    x, _ = validation[0]
    np.testing.assert_array_equal(x[:, 1] - x[:, 0], 1)


# Tables.


def write_csv(path: pathlib.Path, rows: int = 90) -> pathlib.Path:
    lines = [f"{row},{['Ulm', 'Bonn', 'Kiel'][row % 3]},{row / 10},{['no', 'yes'][row % 2]}" for row in range(rows)]
    path.write_text("\n".join(["age,city,price,bought", *lines]) + "\n")
    return path


def test_a_table_is_read_once_and_again_when_it_changes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    path, kept = write_csv(tmp_path / "a.csv"), tmp_path / "kept"
    first = data.table(path, label="price", cache_dir=kept, shuffle=False, batch_size=90)
    names = sorted(file.name for file in kept.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(table_rows, "convert", None)
        again = data.table(path, label="price", cache_dir=kept, shuffle=False, batch_size=90)
    for ours, theirs in zip(first[0][0].values(), again[0][0].values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    copy = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(copy[0][1], again[0][1])
    write_csv(path, 60)
    os.utime(path, ns=(1, 1))
    assert data.table(path, label="price", cache_dir=kept).num_samples == 60
    assert len(list(kept.iterdir())) == len(names) == 2


def test_validation_files_get_the_codes_of_the_training_files(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("pyarrow")
    training = data.table(write_csv(tmp_path / "a.csv"), label="bought", cache_dir=tmp_path, shuffle=False)
    assert training.source.vocabularies == {"city": ["", "Bonn", "Kiel", "Ulm"]}
    assert training[0][0]["city"][:3, 0].tolist() == [3, 1, 2]
    other = {"age": [1], "city": ["Kiel"], "price": [0.5], "bought": ["yes"]}
    validation = data.table(
        other,
        label="bought",
        vocabularies=training.source.vocabularies,
        class_names=training.class_names,
    )
    features, label = validation[0]
    assert (features["city"].tolist(), label.tolist()) == ([[2]], [1])
    assert data.table(other, label="bought", class_names=["yes", "no"])[0][1].tolist() == [0]


def test_frames_weights_several_labels_and_matrices(tmp_path: pathlib.Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2, 3], "b": [True, False, True], "c": ["x", "y", "x"], "w": [1.0, 0.5, 2.0]})
    dataset = data.table(frame, label=["a", "b"], sample_weight="w", features=["a", "c"], as_dict=False, shuffle=False)
    x, y, w = dataset[0]
    assert x.tolist() == [[1, 1], [2, 2], [3, 1]]
    assert y.tolist() == [[1, 1], [2, 0], [3, 1]]
    assert w.tolist() == [1.0, 0.5, 2.0]


# Texts.


def test_language_models_predict_the_next_token_and_padding_weighs_nothing() -> None:
    dataset = data.text(["abc", "ab"], unit="given", tokenizer="characters", target="next", max_length=4, shuffle=False)
    x, y, weights = dataset[0]
    assert dataset.source.vocabulary == ["", "[UNK]", "a", "b", "c"]
    assert (x.tolist(), y.tolist()) == ([[2, 3, 4, 0], [2, 3, 0, 0]], [[3, 4, 0, 0], [3, 0, 0, 0]])
    assert weights.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_documents_in_class_folders_and_a_step_is_compiled_once_a_bucket(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[number % 2] / f"{number}.txt").write_text("ab"[number % 2] + " w" * int(rng.integers(0, 30)))
    dataset = data.text(tmp_path, unit="document", labels="folders", buckets=(4, 8, 32), max_length=32, batch_size=4)
    assert dataset.class_names == ["a", "b"]
    shapes = {x.shape for x, _ in dataset}
    assert shapes <= {(4, 4), (4, 8), (4, 32)}
    assert len(shapes) > 1
    for x, y in dataset:
        first = [dataset.source.vocabulary[token] for token in x[:, 0]]
        assert [dataset.class_names[label] for label in y] == first
    layers = keras.layers
    model = keras.Sequential([layers.Embedding(8, 4), layers.GlobalAveragePooling1D(), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = memfit.fit(model, dataset, epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_a_text_vectorization_layer_is_followed_without_running_it() -> None:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the layer itself needs TensorFlow, and one framework is in this process")
    layer = keras.layers.TextVectorization(max_tokens=6, output_sequence_length=5)
    texts = ["It's a GOOD film!", "a bad film", "good good"]
    layer.adapt(texts)
    dataset = data.text(texts, unit="given", tokenizer=layer, max_length=5, shuffle=False)
    np.testing.assert_array_equal(dataset[0], keras.ops.convert_to_numpy(layer(texts)))
    with pytest.raises(errors.ArgumentError, match="output_mode='multi_hot'"):
        data.text(texts, unit="given", tokenizer=keras.layers.TextVectorization(output_mode="multi_hot"))


# Records.


def record(content: bytes) -> bytes:
    length = len(content).to_bytes(8, "little")
    return length + masked_crc(length).to_bytes(4, "little") + content + bytes(4)


def test_records_before_a_cut_are_used_where_that_is_allowed(tmp_path: pathlib.Path) -> None:
    # tf.train.Example with x = [1.5, -2.0], n = [3, 300, -1] and s = [b"ab", b""].
    example = bytes.fromhex(
        "0a3a0a160a016e12111a0f0a0d03ac02ffffffffffffffffff010a0d0a01"
        "7312080a060a0261620a000a110a0178120c120a0a080000c03f000000c0"
    )
    (tmp_path / "a.tfrecord").write_bytes(record(example))
    (tmp_path / "b.tfrecord").write_bytes(record(example) + record(example)[:20])
    with pytest.warns(UserWarning, match=r"skips .*b\.tfrecord: .*ends within the record"):
        found = data.tfrecord(tmp_path, {"n": ("int64", (3,)), "s": ("uint8", (2,))}, max_broken=1)
    assert (found.num_samples, [file.path for file in found.skipped]) == (2, [str(tmp_path / "b.tfrecord")])
    batch = found[0]
    np.testing.assert_array_equal(batch["n"], [[3, 300, -1]] * 2)
    np.testing.assert_array_equal(batch["s"], [[97, 98]] * 2)


# Samples of other libraries.


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "0 samples"),
        (iter([1]), {}, "must have a length and samples by number"),
        ([{"a": 1, "b": 2}], {"x": "c"}, r"has no 'c'. Received: x=\['c'\], y=None. It has: \['a', 'b'\]"),
        ([{"a": "text", "b": 2}], {"y": "b"}, "must be made of numbers. Received: 'text'"),
        ([([[1], [1, 2]],)], {}, "is no array.*`transform`"),
    ],
)
def test_samples_that_cannot_be_fed(samples: object, options: dict[str, str], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        data.indexed(samples, **options)  # type: ignore[arg-type]


def test_samples_of_several_shapes_name_the_first_that_differs() -> None:
    samples = [(np.zeros(2), 0), (np.zeros(2), 1), (np.zeros(3), 0)]
    dataset = data.indexed(samples, shuffle=False, workers=0)
    with pytest.raises(errors.MemfitError, match=r"sample 2 has a part of shape \(3,\), and the first sample \(2,\)"):
        dataset[0]
    cut = data.indexed(samples, transform=lambda sample: (sample[0][:2], sample[1]), shuffle=False)
    assert cut[0][1].tolist() == [0, 1, 0]
