"""A user's own input pipeline brought under the budget: what each stage holds, what is changed, and why."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memfit.backends import pipelines
from memfit.backends.pipeline_records import ENDLESS, Change, Stage
from memfit.data import disk
from memfit.units import text

_PREFETCHED = 2
"""Elements ahead that hide the work behind a step; more only smooth it."""

_LEAST_SHUFFLED = 16

_LEAST_AUTOTUNED = 64 * 2**20

FolderFor = Callable[[int], tuple[Path | None, str]]


@dataclasses.dataclass(frozen=True)
class Bounded:
    """What shall become of a pipeline.

    Attributes:
        changes: In the order of the stages.
        findings: Sentences for the user: each change with its reason, and what is too large and cannot be changed.
        held_bytes: The most that the pipeline holds with the changes, as far as it is known.
        autotuned: Whether buffers are left that the framework sizes itself.
    """

    changes: tuple[Change, ...]
    findings: tuple[str, ...]
    held_bytes: int
    autotuned: bool


def bounded(dataset: Any, share_bytes: int) -> tuple[Any, tuple[str, ...]]:
    """The data set with caches and buffers that fit a share of the budget; anything but a pipeline as it is.

    Args:
        dataset: What a user passes to ``fit``; stays as it is.
        share_bytes: The most that the pipeline may hold.

    Returns:
        The data set to train on, and sentences for the user; none where nothing needs to change.
    """
    tools = pipelines.tools_for(dataset)
    if tools is None:
        return dataset, ()
    stages = tools.stages(dataset)
    wanted = decide(stages, share_bytes, disk.roomy_folder)
    autotuned = wanted.autotuned and held_bytes(stages) > share_bytes // 2
    room = max(_LEAST_AUTOTUNED, share_bytes - wanted.held_bytes)
    changes, folders = _with_folders(wanted.changes)
    try:
        result = tools.rebuilt(dataset, changes, ram_budget=room if autotuned else None)
    except ValueError as error:
        _remove(folders)
        return dataset, (*wanted.findings, f"the pipeline is left as it is: it could not be built again ({error})")
    if folders:
        weakref.finalize(result, _remove, folders)
    return result, wanted.findings


def held_bytes(stages: Sequence[Stage]) -> int:
    """The most that stages hold together, as far as it is known."""
    return sum(stage.held_bytes or 0 for stage in stages)


def decide(stages: Sequence[Stage], share_bytes: int, folder_for: FolderFor) -> Bounded:
    """What to change so that a pipeline holds at most ``share_bytes``.

    What costs least comes first: two elements ahead instead of many, shuffles of what comes before the decoding instead of
    after it, caches on disk or none, then smaller shuffles.

    Args:
        stages: From the source.
        share_bytes: The most that the pipeline may hold.
        folder_for: A folder with room for so many bytes, or None, and a part of a sentence about it.
    """
    decision = _Decision(list(stages), share_bytes, folder_for)
    decision.name_unknown()
    for change in (decision.prefetches, decision.moved_shuffles, decision.caches, decision.smaller_shuffles):
        if decision.held > share_bytes:
            change()
    if decision.held > share_bytes:
        decision.name_rest()
    changed = {change.index for change in decision.changes}
    autotuned = any(stage.autotuned for index, stage in enumerate(stages) if index not in changed)
    changes = tuple(sorted(decision.changes, key=lambda change: change.index))
    return Bounded(changes, tuple(decision.findings), decision.held, autotuned)


class _Decision:
    """A decision in the making: what each stage would hold with the changes so far."""

    def __init__(self, stages: list[Stage], share_bytes: int, folder_for: FolderFor) -> None:
        self._stages = stages
        self._share = share_bytes
        self._folder_for = folder_for
        self._held = [stage.held_bytes or 0 for stage in stages]
        self.changes: list[Change] = []
        self.findings: list[str] = []

    @property
    def held(self) -> int:
        """Bytes that all stages hold; elements that a cache in memory gives out are held once, whoever else has them."""
        changed = {change.index for change in self.changes}
        total, shared = 0, False
        for index, (stage, held) in enumerate(zip(self._stages, self._held, strict=True)):
            if stage.kind == "cache":
                shared = stage.capacity != 0 and index not in changed
                total += held
            elif stage.kind in ("shuffle", "prefetch", "repeat"):
                total += 0 if shared else held
            else:
                shared = False
                total += held
        return total

    def name_unknown(self) -> None:
        for stage in self._stages:
            if stage.kind in ("cache", "shuffle") and stage.held_bytes is None:
                self.findings.append(
                    f"tf.data: nothing tells how much `{stage.text}` will hold, because the number or the size of its "
                    "elements is not known: use cache(file), or `.apply(tf.data.experimental.assert_cardinality(n))`"
                )

    def caches(self) -> None:
        """Caches in memory that do not fit go to a file, or away."""
        for index, stage in self._of_kind("cache"):
            size = self._held[index]
            too_large = self._too_large(stage, size)
            if not stage.changeable:
                continue
            folder, disk_text = (None, "it never ends") if stage.capacity == ENDLESS else self._folder_for(size)
            if folder is None:
                self._change(Change(index, "drop"), 0, f"{too_large}: left out, because {disk_text}")
            else:
                target = Change(index, "file", target=str(folder))
                self._change(target, 0, f"{too_large}: kept in a temporary file, {disk_text}")

    def moved_shuffles(self) -> None:
        """A shuffle of decoded elements comes before the maps that make them large."""
        for index, stage in self._of_kind("shuffle"):
            place = index
            while place > 1 and self._stages[place - 1].one_to_one and self._stages[place - 1].changeable:
                place -= 1
            if place == index or not stage.changeable or stage.capacity is None:
                continue
            small = self._stages[place - 1].element_bytes
            after = (small or 0) * stage.capacity
            if small is not None and after < self._held[index]:
                moved = (
                    f"{self._too_large(stage, self._held[index])}: it shuffles what comes before the map, {text(after)}"
                )
                self._change(Change(index, "move", size=place), after, moved)

    def prefetches(self) -> None:
        for index, stage in self._of_kind("prefetch"):
            if stage.changeable and stage.capacity is not None and stage.capacity > _PREFETCHED:
                after = _PREFETCHED * (stage.element_bytes or 0)
                reason = f"{self._too_large(stage, self._held[index])}: {_PREFETCHED} elements ahead"
                self._change(Change(index, "size", size=_PREFETCHED), after, reason)

    def smaller_shuffles(self) -> None:
        for index, stage in self._of_kind("shuffle"):
            if not stage.changeable or not stage.element_bytes or any(change.index == index for change in self.changes):
                continue
            room = self._share - (self.held - self._held[index])
            size = room // stage.element_bytes
            # Fewer than a few elements mix nothing: rather too much memory, and a word about it, than a sorted epoch.
            if min(_LEAST_SHUFFLED, stage.capacity or 0) <= size < (stage.capacity or 0):
                reason = (
                    f"{self._too_large(stage, self._held[index])}: shuffle({size}), which mixes less. "
                    "Shuffle the names of files before they are read to mix all of them"
                )
                self._change(Change(index, "size", size=size), size * stage.element_bytes, reason)

    def name_rest(self) -> None:
        """What is still too large: the largest stage, with the line to change."""
        index = max(range(len(self._stages)), key=lambda index: self._held[index])
        stage = self._stages[index]
        size = "more and more" if self.held > 2**60 else text(self.held)
        self.findings.append(
            f"tf.data: the pipeline still holds {size}, and may hold {text(self._share)}; most of it is `{stage.text}`, which "
            f"memfit cannot make smaller: {_CURES[stage.kind]}"
        )

    def _of_kind(self, kind: str) -> list[tuple[int, Stage]]:
        """Stages of a kind while the pipeline is too large, the one that holds most first."""
        found = [(index, stage) for index, stage in enumerate(self._stages) if stage.kind == kind and self._held[index]]
        return sorted(found, key=lambda pair: -self._held[pair[0]]) if self.held > self._share else []

    def _change(self, change: Change, held: int, reason: str) -> None:
        if self.held > self._share:
            self.changes.append(change)
            self.findings.append(reason)
            self._held[change.index] = held

    def _too_large(self, stage: Stage, held: int) -> str:
        size = "without end" if held > 2**60 else text(held)
        return f"tf.data: `{stage.text}` holds {size}, and the pipeline may hold {text(self._share)}"


_CURES = {
    "cache": "replace `.cache()` by `.cache(filename)`, or leave it out",
    "shuffle": "pass a smaller buffer to `.shuffle`, or put it before the `.map` that decodes",
    "prefetch": "write `.prefetch(1)`, or use a smaller batch",
    "batch": "use a smaller batch",
    "map": "pass `num_parallel_calls=1` to `.map`",
    "repeat": "move `.repeat()`",
    "other": "use smaller elements",
}


def _with_folders(changes: tuple[Change, ...]) -> tuple[tuple[Change, ...], list[Path]]:
    """The changes with a private folder for each cache, and the folders."""
    folders: list[Path] = []
    result = []
    for change in changes:
        if change.kind == "file":
            folders.append(disk.temporary_folder(Path(change.target), "tf-data-"))
            change = dataclasses.replace(change, target=str(folders[-1] / "cache"))
        result.append(change)
    return tuple(result), folders


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        disk.remove(folder)
