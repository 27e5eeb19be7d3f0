"""``memfit.shrink.compare``: several models on the same data, in one table and one plot."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memfit.errors import ArgumentError, MemfitError
from memfit.records import Shown
from memfit.shrink import fine_tuning, measuring
from memfit.shrink.measuring import Measured

_PLOTTED = ("disk", "training", "inference", "parameters")


@dataclasses.dataclass(frozen=True)
class Comparison(Shown, Sequence[Measured]):
    """The models of one call of ``compare``: print it, show it in a notebook, or plot it.

    Attributes:
        rows: One for each model, in the order they were given.
        batch_size: Samples of a step.
    """

    rows: tuple[Measured, ...]
    batch_size: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        return self.rows[number]

    def __iter__(self) -> Iterator[Measured]:
        return iter(self.rows)

    def __str__(self) -> str:
        return measuring.table(self.rows)

    def to_json(self) -> str:
        """The rows and the batch size."""
        return json.dumps(dataclasses.asdict(self))

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        score = next((row.score_name for row in self.rows if row.score is not None), "score")
        head = "".join(f"<th>{html.escape(name)}</th>" for name in (*measuring.HEADINGS[:-1], score))
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def plot(self, against: str = "training") -> Any:
        """The score of each model over its bytes, the size of a point by its speed.

        Args:
            against: "disk", "training", "inference" or "parameters".

        Returns:
            The figure of matplotlib.

        Raises:
            ArgumentError: There is no such column.
            MemfitError: matplotlib is not installed.
        """
        if against not in _PLOTTED:
            raise ArgumentError(f"`against` is one of {', '.join(_PLOTTED)}. Received: against={against!r}.")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MemfitError('Plots need matplotlib. Install it with `pip install "memfit[plots]"`.') from error
        shown = [row for row in self.rows if getattr(row, against) is not None and row.score is not None]
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        scale = 1 if against == "parameters" else 2**20
        fastest = max((row.samples_per_second for row in shown), default=1.0)
        for row in shown:
            size: float = 30 + 170 * row.samples_per_second / fastest
            x: Any = getattr(row, against) / scale
            axes.scatter([x], [row.score or 0.0], s=size)
            axes.annotate(row.name, (x, row.score), xytext=(6, 6), textcoords="offset points")
        axes.set_xlabel("parameters" if against == "parameters" else f"{against} in MiB")
        axes.set_ylabel(shown[0].score_name if shown else "score")
        axes.set_title("larger points predict faster")
        return figure


def compare(models: Any, data: Any, *, batch_size: int = 32) -> Comparison:
    """Parameters, disk size, training and inference peak, speed and score of several models on the same data.

    Peaks are predicted by the analysis of a step, beside what the process holds anyway; speed is measured in rounds over
    all models. The score is the first compiled metric, else the loss.

    Args:
        models: Built models: a mapping of names to models, or a sequence, whose models then go by their own names.
        data: ``(x, y)``, ``(x, y, sample_weight)`` or a dataset that can be gone through several times.
        batch_size: Samples of a step.

    Raises:
        ArgumentError: There are no models, two have the same name, one is not built, there is no data.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> model.compile("adam", "mse")
        >>> models = {"whole": model, "half": memfit.shrink.slim(model, 0.5, verbose=0)}
        >>> found = memfit.shrink.compare(models, (np.ones((32, 8), "float32"), np.ones((32, 10), "float32")))
        >>> found[0].parameters, found[1].parameters
        (1226, 618)
    """
    arguments = fine_tuning.fit_data(data, "compare")
    named = models if isinstance(models, Mapping) else {getattr(one, "name", str(one)): one for one in models}
    if not named or len(named) != len(models):
        raise ArgumentError(
            f"compare takes models of different names. Received: {[getattr(one, 'name', one) for one in models]}. "
            "Pass a mapping of names to models."
        )
    return Comparison(measuring.measured(named, arguments, batch_size), batch_size)
