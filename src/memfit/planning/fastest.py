"""The fastest arrangement that fits, over every combination of levers with every micro-batch size; pure arithmetic.

An option is one setting of the levers other than micro-batching: which segments are recomputed, the precision, the
optimizer's state. Each multiplies the time of a step; smaller parts add to it. A prediction costs seconds, so an option that
cannot be faster than what was found already is never asked about, nor one that by a cheap guess is far too large; within an
option only the sizes that would be faster are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from memfit.planning.search import largest_micro_batch, sizes
from memfit.records import Estimate

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Option(Generic[Key]):
    """One setting of the levers other than micro-batching.

    Attributes:
        key: What it is called when its peak is asked for.
        time: Seconds of a step at the whole batch relative to the plain step: 1.0 costs nothing.
        part_time: What the setting adds for each part after the first, beside what any part does, relative to the plain step.
    """

    key: Key
    time: float = 1.0
    part_time: float = 0.0

    def split_time(self, num_parts: int, part_time: float) -> float:
        """The time of a step in parts, where each after the first adds ``part_time`` whatever the setting."""
        return self.time + (part_time + self.part_time) * (num_parts - 1)


@dataclasses.dataclass(frozen=True)
class Found(Generic[Key]):
    """An arrangement that was asked about.

    Attributes:
        option: The setting of the levers.
        size: Samples of a part; the batch size where it is not split.
        peak: Its predicted peak.
        time: Seconds of a step relative to the plain one.
    """

    option: Option[Key]
    size: int
    peak: Estimate
    time: float


@dataclasses.dataclass(frozen=True)
class Search(Generic[Key]):
    """What a search found.

    Attributes:
        fastest: The fastest arrangement that fits; None where none does.
        smallest: The arrangement that was asked about with the lowest upper peak.
        refused: For each option without a size that fits, its smallest peak that was asked about.
        slower: Those that fit but take longer than the fastest, latest first.
    """

    fastest: Found[Key] | None
    smallest: Found[Key]
    refused: tuple[Found[Key], ...]
    slower: tuple[Found[Key], ...] = ()


def search(
    options: Iterable[Option[Key]],
    batch_size: int,
    *,
    predict: Callable[[Key, int], Estimate],
    ceiling: int,
    part_time: float,
    splits: bool = True,
    guess: Callable[[Key, int], int] | None = None,
    worth: float = 0.0,
) -> Search[Key]:
    """The fastest arrangement whose predicted peak is within the ceiling.

    Where the peak does not fall as parts grow, this is the arrangement that trying each of them would find.

    Args:
        options: At least one.
        batch_size: Samples of a full batch.
        predict: The predicted peak of an option with parts of so many samples; dear.
        ceiling: Bytes that the peak may reach, its margin included.
        part_time: What each part after the first adds to a step's time, relative to the plain step.
        splits: Whether the batch may be split.
        guess: A lower bound of what ``predict`` would say, cheap: what it puts above the ceiling is not asked about. The
            option of the least time is asked about all the same.
        worth: The share of the time that must be saved for a further option to be asked about.

    Raises:
        ValueError: There are no options.

    Example:
        >>> options = [Option("plain"), Option("recompute", 1.3)]
        >>> def predict(key, size):
        ...     return Estimate(100 + size * (10 if key == "plain" else 2), 0, "scripted")
        >>> search(options, 64, predict=predict, ceiling=500, part_time=0.01).fastest.size
        32
        >>> search(options, 64, predict=predict, ceiling=500, part_time=0.01, splits=False).fastest.option.key
        'recompute'
    """
    asked: list[Found[Key]] = []
    fitting: list[Found[Key]] = []
    refused: list[Found[Key]] = []
    question = _Question(predict, ceiling, part_time, splits, None)
    for option in sorted(options, key=lambda option: option.time):
        bound = fitting[-1].time * (1.0 - worth) if fitting else float("inf")
        if option.time >= bound:
            break
        found = _within(option, batch_size, bound, question)
        question = dataclasses.replace(question, guess=guess)
        if found is None:
            continue
        asked.append(found)
        (fitting if found.peak.upper <= ceiling else refused).append(found)
    if not asked:
        raise ValueError("There is no option to search among.")
    smallest = min(asked, key=lambda found: found.peak.upper)
    fastest = fitting[-1] if fitting else None
    return Search(fastest, smallest, tuple(refused), tuple(fitting[-2::-1]))


@dataclasses.dataclass(frozen=True)
class _Question(Generic[Key]):
    """What does not change from option to option."""

    predict: Callable[[Key, int], Estimate]
    ceiling: int
    part_time: float
    splits: bool
    guess: Callable[[Key, int], int] | None

    def time(self, option: Option[Key], batch_size: int, size: int) -> float:
        return option.split_time(-(-batch_size // size), self.part_time)

    def guessed(self, option: Option[Key], size: int) -> int:
        return 0 if self.guess is None else self.guess(option.key, size)


def _within(option: Option[Key], batch_size: int, bound: float, question: _Question[Key]) -> Found[Key] | None:
    """The largest size of one option that fits and is faster than the bound; where none is, the smallest peak asked."""
    guessed = question.guessed(option, batch_size)
    whole: Estimate | None = None
    if guessed <= question.ceiling:
        whole = question.predict(option.key, batch_size)
        if whole.upper <= question.ceiling or not question.splits:
            return Found(option, batch_size, whole, option.time)
    candidates = tuple(
        size
        for size in (sizes(batch_size) if question.splits else ())
        if question.time(option, batch_size, size) < bound and question.guessed(option, size) <= question.ceiling
    )
    if not candidates:
        return None if whole is None else Found(option, batch_size, whole, option.time)
    size, peak = largest_micro_batch(
        batch_size,
        lambda size: question.predict(option.key, size),
        question.ceiling,
        whole=whole or Estimate(guessed, 0, "a guess"),
        candidates=candidates,
    )
    size = size or candidates[-1]
    return Found(option, size, peak, question.time(option, batch_size, size))
