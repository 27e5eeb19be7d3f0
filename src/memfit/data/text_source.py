"""``memfit.data.text``: lines or documents, tokenised while they are needed, in batches of a few lengths.

A batch is as long as its bucket, one of a few lengths: so a step is compiled a few times and not for every length. Batches
are made of texts of like length. The first batch of an epoch has the largest bucket, by which the run is planned, and the
second the smallest: Keras learns from these two, on TensorFlow, that the length varies.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import file_lists, pipeline_options, shuffling, text_files, tokenizing
from memfit.data.pipeline_options import Division, PipelineOptions
from memfit.data.progress import stderr_progress
from memfit.data.shuffling import Order, index_dtype
from memfit.data.source import Draft, Source
from memfit.data.text_files import Texts
from memfit.data.tokenizing import TokenCounts, Tokenize, VocabularyTokenizer
from memfit.records import TensorSpec

_UNITS = ("line", "document", "given")
_SUFFIXES = (".txt", ".text", ".md", ".jsonl")


class TextSource(Source):
    """Texts as rows of token numbers, padded with 0.

    Args:
        texts: Where they are.
        tokenize: Makes numbers of one.
        buckets: Lengths that a batch may have, ascending; longer texts are cut.
        bucket_of: uint8, shape (num_samples,): which bucket each text needs.
        batch_size: Samples of a batch: a shorter one is padded to the largest bucket.
        shuffled: Whether batches are made of texts of like length; otherwise all have the largest bucket.

    Attributes:
        vocabulary: Tokens in the order of their numbers, where the tokens are of a vocabulary.
        labels: One a text, or None.
    """

    def __init__(
        self,
        texts: Texts,
        tokenize: Tokenize,
        *,
        buckets: Sequence[int],
        bucket_of: np.ndarray,
        batch_size: int,
        shuffled: bool,
    ) -> None:
        self.num_samples = len(bucket_of)
        self.vocabulary = tokenize.vocabulary if isinstance(tokenize, VocabularyTokenizer) else None
        self.labels: np.ndarray | None = None
        self._texts = texts
        self._tokenize = tokenize
        self._buckets = np.asarray(buckets)
        self._bucket_of = bucket_of
        self._largest = int(bucket_of.max())
        self._batch_size = batch_size
        self._shuffled = shuffled
        self._next = False
        self._chosen: np.ndarray | None = None
        self.spec = (TensorSpec((int(self._buckets[self._largest]),), "int32"),)

    def labelled(self, labels: np.ndarray, class_names: Sequence[str]) -> TextSource:
        """Gives each text a label."""
        self.labels, self.class_names = labels, class_names
        self.spec = (self.spec[0], TensorSpec(labels.shape[1:], str(labels.dtype)))
        return self

    def predicting_next(self) -> TextSource:
        """Makes the target of each token the one after it, and the weight of padding 0."""
        self._next = True
        self.spec = (self.spec[0], self.spec[0], TensorSpec(self.spec[0].shape, "float32"))
        return self

    def part(self, chosen: np.ndarray, *, shuffled: bool) -> TextSource:
        """The source of some of the texts: int, shape (num_samples,)."""
        part = TextSource(
            self._texts,
            self._tokenize,
            buckets=self._buckets.tolist(),
            bucket_of=self._bucket_of[chosen],
            batch_size=self._batch_size,
            shuffled=shuffled,
        )
        part._chosen = chosen
        if self.labels is not None:
            part.labelled(self.labels[chosen], self.class_names)
        return part.predicting_next() if self._next else part

    @property
    def held_bytes(self) -> int:
        chosen = 0 if self._chosen is None else self._chosen.nbytes
        return self._texts.held_bytes + self._bucket_of.nbytes + chosen

    @property
    def reading_bytes(self) -> int:
        """Of a text, its tokens as Python objects and as numbers; about a hundred bytes a token."""
        return 100 * int(self._buckets[self._largest]) + 2**20

    def begin(self, samples: np.ndarray, *, seed: int, epoch: int) -> Draft:
        bucket = int(self._bucket_of[samples].max())
        if not self._shuffled or len(samples) < self._batch_size:
            bucket = self._largest
        length = int(self._buckets[bucket]) + self._next
        tokens = np.zeros((len(samples), length), np.int32)

        def read(start: int, stop: int) -> None:
            for row in range(start, stop):
                number = samples[row] if self._chosen is None else self._chosen[samples[row]]
                found = np.asarray(self._tokenize(self._texts[int(number)]), np.int32)[:length]
                tokens[row, : len(found)] = found

        return Draft(read, lambda: self._batch(tokens, samples))

    @property
    def arranging_bytes(self) -> int:
        """Of the orders before and after, 4 bytes a text each, those between, and the texts of a bucket, 8 bytes each."""
        return 24 * self.num_samples if self._shuffled else 0

    def arranged(self, order: Order, *, batch_size: int, shuffled: bool) -> Order:
        """Batches of like length, in an order as random as ``order``; the shortest texts make the last, smaller one."""
        if not shuffled or len(order) <= batch_size:
            return order
        drawn = order[:].astype(index_dtype(len(order)), copy=False)
        positions = _by_group(self._bucket_of[drawn])
        by_length = drawn[positions]
        left = len(order) % batch_size
        batches = by_length[left:].reshape(-1, batch_size)
        by_first = np.argsort(positions[left::batch_size])
        del positions
        needed = self._bucket_of[batches[:, -1]][by_first]
        ends = [int(needed.argmax())]
        ends += [] if needed[ends[0]] == needed.min() else [int(needed.argmin())]
        rest = np.setdiff1d(np.arange(len(batches)), ends)
        arranged = np.empty(len(order), drawn.dtype)
        np.take(batches, by_first[[*ends, *rest]], axis=0, out=arranged[: len(order) - left].reshape(-1, batch_size))
        arranged[len(order) - left :] = by_length[:left]
        return arranged

    def _batch(self, tokens: np.ndarray, samples: np.ndarray) -> Any:
        if self._next:
            x, y = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
            return x, y, (y != 0).astype(np.float32)
        return tokens if self.labels is None else (tokens, self.labels[samples])


def _by_group(groups: np.ndarray) -> np.ndarray:
    """As ``np.argsort(groups, kind="stable")`` of small numbers, in less memory."""
    dtype = index_dtype(len(groups))
    return np.concatenate([np.flatnonzero(groups == group).astype(dtype) for group in range(int(groups.max()) + 1)])


def text(
    files: Any,
    *,
    labels: Any = None,
    unit: str = "line",
    target: str | None = None,
    tokenizer: Any = "words",
    vocabulary: Sequence[str] | None = None,
    max_tokens: int = 20_000,
    max_length: int = 256,
    buckets: Sequence[int] | None = None,
    encoding: str = "utf-8",
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    workers: int | None = None,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
) -> Any:
    """Lines or documents as a data set of token numbers for ``fit``, ``evaluate`` and ``predict`` on every backend.

    Texts stay in their files: 16 bytes a text are held (on disk where there are many), and one for its length. They are gone
    through once, for their lengths and the vocabulary, and tokenised again whenever they are needed.

    Args:
        files: A text file, a pattern, a folder, or a list of them. With ``unit="given"`` the texts themselves.
        labels: "folders" for the names of the folders that documents lie in, ``train/good/1.txt``; or one label a text:
            numbers, or words, which become classes in alphabetical order.
        unit: "line" for a text a line (empty ones are left out), "document" for a text a file, or "given".
        target: "next" to predict each token from those before it: ``(x, y, weights)``, padding weighs 0.
        tokenizer: "words" (lower case, no punctuation), "characters", a ``keras.layers.TextVectorization`` that was adapted,
            or a function from a text to a list of integers above 0.
        vocabulary: Of a data set made before (``training.source.vocabulary``), so that numbers mean the same.
        max_tokens: Words or characters of the vocabulary, the two for padding and unknown ones among them.
        max_length: Tokens of a text; longer ones are cut.
        buckets: Lengths that a batch may have, up to ``max_length``, such as (32, 64, 128, 256). Left out: powers of two from
            32. One length, ``(max_length,)``, where the model needs that.
        encoding: Of the files.
        batch_size: Samples of a batch. The last one of an epoch has the rest.
        shuffle: Whether every epoch has a new order, a permutation of all texts, in batches of like length. Without it
            batches keep the order and all have one length.
        seed: Makes the order of every epoch and the split repeatable; drawn from Python's ``random`` if left out.
        validation_split: Share of the texts for validation; the same share of every class.
        subset: "training", "validation", or "both" for a tuple of the two; needed with ``validation_split``.
        workers: Threads that read and tokenise; 1 if left out.
        max_queue_size: Batches made ahead.
        max_queue_bytes: Bytes of batches ahead.

    Raises:
        ArgumentError: There are no texts, labels do not fit them, or an argument cannot work.
        MemfitError: A text is not in the encoding.

    Example:
        >>> texts = ["a good film", "bad", "good good", "a bad film indeed"]
        >>> dataset = text(texts, unit="given", labels=["+", "-", "+", "-"], batch_size=4, shuffle=False, max_length=4)
        >>> x, y = dataset[0]
        >>> x.tolist(), y.tolist(), dataset.class_names
        ([[3, 2, 5, 0], [4, 0, 0, 0], [2, 2, 0, 0], [3, 4, 5, 6]], [0, 1, 0, 1], ['+', '-'])
    """
    pipeline_options.require_choice("unit", unit, _UNITS)
    pipeline_options.require_choice("target", target, (None, "next"))
    lengths = _lengths(max_length, buckets)
    paths = [] if unit == "given" else file_lists.listed(files, suffixes=_SUFFIXES)
    texts: Texts
    if unit == "given":
        texts = text_files.given(files)
    else:
        texts = text_files.lines(paths, encoding) if unit == "line" else text_files.documents(paths, encoding)
    if not len(texts):
        raise errors.ArgumentError(f"The data is empty. Received: {len(paths)} files without a text.")
    labelled = _labels(labels, paths, unit=unit, num_texts=len(texts))
    if labelled is not None and target is not None:
        raise errors.ArgumentError(f"Pass `labels` or `target`, not both. Received: both, target={target!r}.")
    division = Division(validation_split, subset, seed)
    options = PipelineOptions(
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=1 if workers is None else workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
    )
    pipeline_options.require_integer("max_tokens", max_tokens, least=3)
    tokenize, bucket_of = _surveyed(texts, tokenizer, vocabulary, max_tokens=max_tokens, edges=lengths + bool(target))
    source = TextSource(
        texts, tokenize, buckets=lengths.tolist(), bucket_of=bucket_of, batch_size=batch_size, shuffled=options.shuffle
    )
    if labelled is not None:
        source.labelled(*labelled)
    elif target == "next":
        source.predicting_next()
    return _divided(source, options, division)


def _divided(source: TextSource, options: PipelineOptions, division: Division) -> Any:
    """As ``pipeline.divided``, but each subset is a source with a largest length of its own."""
    from memfit.data.pipeline import Pipeline  # Imports Keras, which takes seconds: last.

    if division.validation_split is None:
        return Pipeline(source, options)
    classes = np.zeros(source.num_samples, np.int8)
    if source.labels is not None and source.class_names:
        classes = source.labels
    training, validation = shuffling.split(
        classes, validation_split=division.validation_split, seed=division.seed_of_split
    )
    division.check(training.size, validation.size)
    in_order = PipelineOptions(**{**vars(options), "shuffle": False})
    made = {
        "training": Pipeline(source.part(training, shuffled=options.shuffle), options),
        "validation": Pipeline(source.part(validation, shuffled=False), in_order),
    }
    return tuple(made.values()) if division.subset == "both" else made[str(division.subset)]


def _lengths(max_length: int, buckets: Sequence[int] | None) -> np.ndarray:
    """The buckets, ascending."""
    pipeline_options.require_integer("max_length", max_length, least=1)
    if buckets is None:
        powers = itertools.takewhile(lambda length: length < max_length, (32 * 2**power for power in range(32)))
        return np.array([*powers, max_length])
    chosen = sorted(set(buckets))
    if not chosen or min(chosen) < 1 or max(chosen) != max_length or len(chosen) > 32:
        raise errors.ArgumentError(
            f"`buckets` must be at most 32 lengths from 1 to `max_length`, which is the last of them. "
            f"Received: buckets={buckets!r}, max_length={max_length}"
        )
    return np.array(chosen)


def _labels(labels: Any, paths: Sequence[str], *, unit: str, num_texts: int) -> tuple[np.ndarray, list[str]] | None:
    """Labels, one a text, and the names of the classes."""
    if labels is None:
        return None
    if isinstance(labels, str):
        if labels != "folders" or unit != "document":
            raise errors.ArgumentError(
                '`labels` must be one a text, or "folders" where unit="document". '
                f"Received: labels={labels!r}, unit={unit!r}"
            )
        labels = [os.path.basename(os.path.dirname(path)) for path in paths]
    values = labels.to_numpy() if hasattr(labels, "to_numpy") else np.asarray(labels)
    if values.ndim == 0 or len(values) != num_texts:
        raise errors.ArgumentError(
            f"`labels` must have one label a text; empty lines are no texts. Received: {len(labels)} for {num_texts} texts."
        )
    if values.dtype.kind in "iub":
        return values.astype(np.int32), []
    if values.dtype.kind == "f":
        return values.astype(np.float32), []
    names, places = np.unique(values.astype(str), return_inverse=True)
    if len(names) == 1:
        raise errors.ArgumentError(
            f"`labels` holds a single class: {names.tolist()}. There is nothing to learn from it. Was a folder above or below "
            "meant?"
        )
    return places.astype(np.int32), names.tolist()


def _surveyed(
    texts: Texts, tokenizer: Any, vocabulary: Sequence[str] | None, *, max_tokens: int, edges: np.ndarray
) -> tuple[Tokenize, np.ndarray]:
    """The function that tokenises, and the bucket that each text needs: one pass over the texts."""
    report = stderr_progress("counting tokens", "texts")
    counts = TokenCounts(max_tokens)
    tokenize: Tokenize | None = None
    count: Callable[[str], int]
    if isinstance(tokenizer, str):
        pipeline_options.require_choice("tokenizer", tokenizer, tuple(tokenizing.SPLITTERS))
        split = tokenizing.SPLITTERS[tokenizer]

        def count(text: str) -> int:
            tokens = split(text)
            if vocabulary is None:
                counts.add(tokens)
            return len(tokens)
    else:
        tokenize = tokenizing.of_layer(tokenizer) if hasattr(tokenizer, "get_vocabulary") else tokenizer
        if not callable(tokenize) or vocabulary is not None:
            raise errors.ArgumentError(
                '`tokenizer` must be "words" or "characters", which may have a `vocabulary`, an adapted TextVectorization, or '
                f"a function from a text to a list of integers. Received: tokenizer={tokenizer!r:.100}"
            )
        chosen = tokenize

        def count(text: str) -> int:
            return len(chosen(text))

    bucket_of = np.empty(len(texts), np.uint8)
    for number in range(len(texts)):
        bucket_of[number] = min(int(np.searchsorted(edges, count(texts[number]))), len(edges) - 1)
        report(number + 1)
    if tokenize is None:
        tokenize = VocabularyTokenizer(split, vocabulary or counts.vocabulary(max_tokens))
    return tokenize, bucket_of
