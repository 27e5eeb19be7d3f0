"""``memfit.data.text`` up to the point where it needs Keras."""

from __future__ import annotations

import pathlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit import data, errors
from memfit.data import shuffling, text_files, tokenizing
from memfit.data.text_source import TextSource
from memfit.data.tokenizing import TokenCounts

TEXTS = ["good film", "bad film", "good"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "page"}, "`unit` must be one of"),
        ({"target": "last"}, "`target` must be one of"),
        ({"tokenizer": "syllables"}, "`tokenizer` must be one of"),
        ({"tokenizer": 3}, '`tokenizer` must be "words" or'),
        ({"labels": [1, 0]}, "one label a text; .* Received: 2 for 3 texts"),
        ({"labels": ["+", "+", "+"]}, r"holds a single class: \['\+'\]"),
        ({"labels": "folders"}, 'where unit="document"'),
        ({"labels": [1, 0, 1], "target": "next"}, "`labels` or `target`, not both"),
        ({"buckets": (8, 512)}, "`buckets` must be at most 32 lengths"),
        ({"max_length": 0}, "`max_length` must be"),
        ({"max_tokens": 2}, "`max_tokens` must be"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        data.text(TEXTS, **{"unit": "given", **options})


def test_a_text_in_another_encoding_names_the_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\nz\u00fcrich\n".encode("latin-1"))
    with pytest.raises(errors.MemfitError, match=r"The text at byte 4 of .*a\.txt is not utf-8: .*encoding"):
        data.text(tmp_path)


def test_a_folder_without_a_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(errors.ArgumentError, match=r"The data is empty. Received: 1 files without a text"):
        data.text(tmp_path)


def test_rare_tokens_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_COUNTED_AT_LEAST", 100)
    counts = TokenCounts(3)
    for number in range(5000):
        counts.add(["often", "sometimes", f"once{number}"] if number % 3 else ["often", f"once{number}"])
    assert len(counts._counts) <= 100
    assert counts.vocabulary(4) == ["", "[UNK]", "often", "sometimes"]


@given(data_=st.data(), seed=st.integers(0, 99), batch_size=st.integers(1, 9), num=st.integers(1, 60))
def test_batches_are_of_like_length_and_keras_sees_that_the_length_varies(
    data_: Any, seed: int, batch_size: int, num: int
) -> None:
    bucket_of = np.array(data_.draw(st.lists(st.integers(0, 3), min_size=num, max_size=num)), np.uint8)
    source = TextSource(
        text_files.GivenTexts(["1"] * num),
        lambda text: [1],
        buckets=[4, 8, 16, 32],
        bucket_of=bucket_of,
        batch_size=batch_size,
        shuffled=True,
    )
    order = np.random.default_rng(seed).permutation(num)
    arranged = source.arranged(order, batch_size=batch_size, shuffled=True)
    assert sorted(arranged.tolist()) == list(range(num))
    lengths = [
        source.begin(arranged[start : start + batch_size], seed=0, epoch=0).finish().shape[1]
        for start in range(0, num, batch_size)
    ]
    assert lengths[0] == max(lengths) == source.spec[0].shape[0]
    # From the first two batches alone TensorFlow takes the length to be fixed, or not.
    assert len(set(lengths[:2])) == len(set(lengths)) or len(set(lengths[:2])) > 1
    needed = [bucket_of[arranged[start : start + batch_size]].max() for start in range(0, num, batch_size)]
    assert all(4 * 2**bucket <= length for bucket, length in zip(needed, lengths, strict=True))


def test_arranging_takes_the_bytes_that_are_said() -> None:
    num = 100_000
    bucket_of = np.random.default_rng(0).integers(0, 3, num).astype(np.uint8)
    source = TextSource(
        text_files.GivenTexts(["1"] * num),
        lambda text: [1],
        buckets=[4, 8, 16],
        bucket_of=bucket_of,
        batch_size=32,
        shuffled=True,
    )
    tracemalloc.start()
    try:
        order = shuffling.epoch_order(num, seed=0, epoch=0)
        source.arranged(order, batch_size=32, shuffled=True)
        assert 8 * num < tracemalloc.get_traced_memory()[1] < source.arranging_bytes == 24 * num
    finally:
        tracemalloc.stop()


@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), max_size=9))
def test_words_are_numbered_by_their_frequency(texts: list[str]) -> None:
    counts = TokenCounts(100)
    for text in texts:
        counts.add(tokenizing.words(text))
    vocabulary = counts.vocabulary(100)
    tokenize = tokenizing.VocabularyTokenizer(tokenizing.words, vocabulary)
    for text in texts:
        assert [vocabulary[number] for number in tokenize(text)] == tokenizing.words(text)
