"""From a text to numbers, without TensorFlow: words or characters of a vocabulary, numbered as Keras' TextVectorization does.

0 is padding, 1 a token that is not in the vocabulary.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from memfit import errors

PADDING, UNKNOWN = "", "[UNK]"
_PUNCTUATION = re.compile(r"[!\"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~']")
_COUNTED_AT_LEAST = 500_000

Tokenize = Callable[[str], Any]
"""From a text to its tokens' numbers: a sequence or array of integers."""


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, as TextVectorization makes them.

    Example:
        >>> words("It's  GOOD, isn't it?")
        ['its', 'good', 'isnt', 'it']
    """
    return _PUNCTUATION.sub("", text.lower()).split()


SPLITTERS: dict[str, Callable[[str], Sequence[str]]] = {"words": words, "characters": str}


class VocabularyTokenizer:
    """Numbers of the tokens of a text.

    Args:
        split: From a text to tokens.
        vocabulary: Tokens in the order of their numbers, beginning with those for padding and unknown ones.

    Example:
        >>> VocabularyTokenizer(words, ["", "[UNK]", "good", "it"])("Is it good?").tolist()
        [1, 3, 2]
    """

    def __init__(self, split: Callable[[str], Sequence[str]], vocabulary: Sequence[str]) -> None:
        self._split = split
        self.vocabulary = list(vocabulary)
        self._number = {token: number for number, token in enumerate(self.vocabulary)}

    def __call__(self, text: str) -> np.ndarray:
        number = self._number.get
        return np.array([number(token, 1) for token in self._split(text)], np.int32)


class TokenCounts:
    """Counts tokens in bounded memory: where there are too many different ones, the rarest so far are forgotten.

    Args:
        max_tokens: How many are wanted in the end; twenty times as many are counted, and half a million at least.

    Example:
        >>> counts = TokenCounts(2)
        >>> counts.add(["b", "a", "c", "b"])
        >>> counts.vocabulary(4)
        ['', '[UNK]', 'b', 'a']
    """

    def __init__(self, max_tokens: int) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._most = max(_COUNTED_AT_LEAST, 20 * max_tokens)

    def add(self, tokens: Iterable[str]) -> None:
        self._counts.update(tokens)
        rarest = 1
        while len(self._counts) > self._most:
            self._counts = collections.Counter({t: n for t, n in self._counts.items() if n > rarest})
            rarest *= 2

    def vocabulary(self, max_tokens: int) -> list[str]:
        """The most frequent tokens after the two special ones; equally frequent ones in alphabetical order."""
        ranked = sorted(self._counts.items(), key=lambda counted: (-counted[1], counted[0]))
        return [PADDING, UNKNOWN, *(token for token, _ in ranked[: max_tokens - 2])]


def of_layer(layer: Any) -> VocabularyTokenizer:
    """What a ``keras.layers.TextVectorization`` does, without running it.

    Raises:
        ArgumentError: It does something that has no counterpart here, or was not adapted.
    """
    config = layer.get_config()
    standardize, split, mode = (config.get(name) for name in ("standardize", "split", "output_mode"))
    known = split in ("whitespace", "character") and mode == "int" and not config.get("ngrams")
    if not known or standardize not in ("lower_and_strip_punctuation", "lower", "strip_punctuation", None):
        raise errors.ArgumentError(
            "`tokenizer`: a TextVectorization layer must split into words or characters, with one of Keras' own "
            f'standardizations and output_mode="int". Received: standardize={standardize!r}, split={split!r}, '
            f"output_mode={mode!r}. Pass a function from a text to a list of integers."
        )
    vocabulary = layer.get_vocabulary()
    if len(vocabulary) <= 2:
        raise errors.ArgumentError('`tokenizer`: the layer has no vocabulary. Call its `adapt` first, or pass "words".')
    return VocabularyTokenizer(_LayerSplit(standardize, split), vocabulary)


class _LayerSplit:
    """Standardizes and splits as a layer was told to; an object, because it goes to other processes."""

    def __init__(self, standardize: str | None, split: str) -> None:
        self._lower = standardize in ("lower", "lower_and_strip_punctuation")
        self._strip = standardize in ("strip_punctuation", "lower_and_strip_punctuation")
        self._by_character = split == "character"

    def __call__(self, text: str) -> Sequence[str]:
        text = text.lower() if self._lower else text
        text = _PUNCTUATION.sub("", text) if self._strip else text
        return text if self._by_character else text.split()
