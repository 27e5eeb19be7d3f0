"""``memfit.shrink.advise``: what would make a model smaller, each with what it saves, found by making it."""

from __future__ import annotations

import dataclasses
import gc
import html
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memfit import backends
from memfit.errors import ArgumentError
from memfit.executing.arguments import check_model
from memfit.records import Shown
from memfit.reporting.console import shown
from memfit.shrink import anatomy, costs, proposing
from memfit.shrink.changes import Change
from memfit.units import text

MOST = 24
QUICK_MOST = 8
_COLUMNS = ("saves", "change", "parameters", "training peak", "keeps")


@dataclasses.dataclass(frozen=True)
class Advice:
    """One change, and what the changed model costs.

    Attributes:
        kind: Of the change.
        change: What is changed.
        keeps: Which weights go over, and what is to be done by hand.
        before: The cost of the model.
        after: The cost of the changed model.
    """

    kind: str
    change: str
    keeps: str
    before: costs.Cost
    after: costs.Cost
    _build: Callable[[], Any] = dataclasses.field(repr=False, compare=False)

    @property
    def saved(self) -> int:
        """Bytes by which the peak of training falls."""
        return self.before.training - self.after.training

    def apply(self) -> Any:
        """A new compiled model with the change; the model that was asked about is left as it is."""
        return self._build()

    def __str__(self) -> str:
        share = self.saved / max(1, self.before.training)
        return (
            f"{text(self.saved):>9} ({share:4.0%})  {self.change}\n{'':18}{self.after.parameters:,} parameters, training peak "
            f"{text(self.after.training)}; keeps {self.keeps}"
        )


@dataclasses.dataclass(frozen=True)
class Advices(Shown, Sequence[Advice]):
    """Advice, what saves most first.

    Attributes:
        model: The model's name.
        batch_size: Samples of a step.
        cost: Of the model as it is.
        items: The advice.
        notes: What was left out, and why, in sentences.
    """

    model: str
    batch_size: int
    cost: costs.Cost
    items: tuple[Advice, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> Any:
        return self.items[number]

    def __iter__(self) -> Iterator[Advice]:
        return iter(self.items)

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.cost.parameters:,} parameters, training peak {text(self.cost.training)} at batch size "
            f"{self.batch_size} ({self.cost.source}), beside what the process holds anyway",
            *(f"{number:2}. {advice}" for number, advice in enumerate(self.items)),
            *(f"  - {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The records, without what builds the models."""
        records = [
            {"kind": one.kind, "change": one.change, "keeps": one.keeps, "saved_bytes": one.saved}
            | {"after": _cost_fields(one.after)}
            for one in self.items
        ]
        return json.dumps(
            {"model": self.model, "batch_size": self.batch_size, "before": _cost_fields(self.cost)}
            | {"advice": records, "notes": list(self.notes)}
        )

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        rows = [
            (text(one.saved), one.change, f"{one.after.parameters:,}", text(one.after.training), one.keeps)
            for one in self.items
        ]
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        caption = html.escape(str(self).split("\n", 1)[0])
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>{notes}"


def _cost_fields(cost: costs.Cost) -> dict[str, Any]:
    return {**dataclasses.asdict(cost), "training": cost.training}


def advise(
    model: Any,
    *,
    batch_size: int = 32,
    shapes: Sequence[tuple[int, ...]] | None = None,
    quick: bool = False,
    verbose: int = 1,
) -> Advices:
    """What would make a model smaller, by the bytes that training it would save. Trains nothing.

    Every figure is of a model that was really changed: it is built, its training step is analysed as ``memfit.profile``
    does, and it is dropped again. That takes a second or so each, several for large models on JAX, so that at most 24
    changes are looked at (8 with ``quick``), those about the most bytes first.

    Args:
        model: A built and compiled Sequential or Functional model; it is left as it is.
        batch_size: Samples of a training step.
        shapes: Of one sample of each input, where the model leaves dimensions open.
        quick: One change of each kind, and fewer of them.
        verbose: 0 to show no progress.

    Returns:
        The advice, what saves most first: print it, show it in a notebook, or call ``apply()`` of one.

    Raises:
        ArgumentError: The model is not compiled, not built, or has no graph.

    Example:
        >>> import keras, memfit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> model.compile("adam", "mse")
        >>> advice = memfit.shrink.advise(model, quick=True, verbose=0)
        >>> advice[0].apply().output_shape
        (None, 10)
    """
    check_model(model)
    found = anatomy.anatomy(model)
    backend = backends.current()
    before = costs.cost(model, batch_size, shapes=shapes)
    candidates = _chosen(proposing.proposed(model), quick)
    notes = [f"{name} stays as it is: {reason}" for name, reason in found.left.items()]
    advice = []
    for number, change in enumerate(candidates, 1):
        with shown(f"looking at change {number} of {len(candidates)}: {change.text}", quiet=verbose == 0):
            after = _after(change, (batch_size, None if change.kind == "smaller input" else shapes))
        gc.collect()
        backend.release()
        if isinstance(after, str):
            notes.append(f"not possible: {change.text}: {after}")
        else:
            advice.append(Advice(change.kind, change.text, change.keeps, before, after, change.build))
    saving = sorted((one for one in advice if one.saved > 0), key=lambda one: -one.saved)
    notes += [f"saves nothing here: {one.change}" for one in advice if one.saved <= 0]
    return Advices(model.name, batch_size, before, tuple(saving), tuple(notes))


def _chosen(proposed: list[Change], quick: bool) -> list[Change]:
    """Those about the most bytes, of every kind at least one."""
    first = list({change.kind: change for change in reversed(proposed)}.values())
    if quick:
        return sorted(first, key=lambda change: -change.weight)[:QUICK_MOST]
    rest = [change for change in proposed if change not in first]
    return [*first, *rest[: max(0, MOST - len(first))]]


def _after(change: Change, step: tuple[int, Any]) -> costs.Cost | str:
    """The cost of the changed model, or why it cannot be made."""
    batch_size, shapes = step
    try:
        return costs.cost(change.build(), batch_size, shapes=shapes)
    except (ArgumentError, ValueError, TypeError) as error:
        return " ".join(str(error).split())[:200]
