"""What the demo found: one table for a person, one JSON object for a program, and whether it is what was to be shown."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memfit import units
from memfit.cli.demo_runs import FAILED, FINISHED, KILLED, WAY_NAMES, Cap, DemoRun

_WIDTH_IN_A_LOG = 100
_STYLES = {FINISHED: "bold green", KILLED: "bold red", FAILED: "bold yellow"}


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """Everything that a demo found.

    Attributes:
        backend: The Keras backend.
        cap: The cap.
        batch_size: Images of one update.
        epochs: Passes over the training images.
        num_training: Images that were trained on.
        num_validation: Images that were held out.
        runs: In the order in which they ran.
    """

    backend: str
    cap: Cap
    batch_size: int
    epochs: int
    num_training: int
    num_validation: int
    runs: tuple[DemoRun, ...]

    @property
    def as_promised(self) -> bool:
        """Whether plain Keras was killed and memfit finished, for each model."""
        return not self._differences()

    @property
    def verdict(self) -> str:
        """The outcome in a sentence; what was different where it was not what the demo is to show."""
        differences = self._differences()
        if differences:
            return "Not as it should be: " + "; ".join(differences) + "."
        return (
            f"Under the same cap of {units.text(self.cap.bytes)} plain Keras was killed and memfit finished, "
            "with the same data, batch size, epochs and seed."
        )

    def _differences(self) -> list[str]:
        return [difference for run in self.runs if (difference := self._difference(run)) is not None]

    def _difference(self, run: DemoRun) -> str | None:
        promised = KILLED if run.way == "plain" else FINISHED
        if run.outcome == promised:
            return None
        who = f"{WAY_NAMES[run.way]} on the {run.model} model"
        if run.outcome == FAILED:
            return f"{who} failed ({run.last_words})"
        if run.way == "plain":
            return (
                f"{who} finished with a peak of {units.text(run.peak_bytes)}: the batch of {self.batch_size} fits in "
                f"the cap of {units.text(self.cap.bytes)}, so take a larger --batch-size or a smaller --cap"
            )
        return f"{who} was killed by the cap of {units.text(self.cap.bytes)}"

    def to_json(self) -> str:
        """One JSON object in one line."""
        return json.dumps(
            {
                "backend": self.backend,
                "cap_bytes": self.cap.bytes,
                "cap_mechanism": self.cap.mechanism,
                "batch_size": self.batch_size,
                "epochs": self.epochs,
                "num_training": self.num_training,
                "num_validation": self.num_validation,
                "runs": [dataclasses.asdict(run) for run in self.runs],
                "as_promised": self.as_promised,
                "verdict": self.verdict,
            }
        )


def table(report: DemoReport) -> Table:
    """One row a run."""
    drawn = Table(
        title=f"{report.epochs} epochs in batches of {report.batch_size} on {report.backend}, "
        f"under a cap of {units.text(report.cap.bytes)}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for name in ("Model", "Way", "Outcome"):
        drawn.add_column(name)
    for name in ("Peak memory", "Seconds", "Final accuracy", "Micro-batch"):
        drawn.add_column(name, justify="right")
    for run in report.runs:
        drawn.add_row(*_cells(run))
    return drawn


def _cells(run: DemoRun) -> tuple[str | Text, ...]:
    return (
        run.model,
        WAY_NAMES[run.way],
        Text(run.outcome, style=_STYLES[run.outcome]),
        units.text(run.peak_bytes),
        f"{run.seconds:.1f}",
        "-" if run.accuracy is None else f"{run.accuracy:.1%}",
        "-" if run.micro_batch_size is None else str(run.micro_batch_size),
    )


def show(report: DemoReport, stream: TextIO | None = None) -> None:
    """Prints the table, what the cap was, memfit's plans and the verdict."""
    console = Console(file=sys.stdout if stream is None else stream)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH_IN_A_LOG)
    console.print(table(report))
    images = f"{report.num_training} images to train on, accuracy on {report.num_validation} others"
    _line(console, f"Cap: {units.text(report.cap.bytes)}, held by a {report.cap.mechanism}; {images}.")
    for run in report.runs:
        if run.plan is not None:
            _line(console, f"{run.model}: {run.plan}{_prediction(run)}")
    _line(console, report.verdict)


def _prediction(run: DemoRun) -> str:
    if run.predicted_peak_bytes is None:
        return ""
    return f" (predicted peak: {units.text(run.predicted_peak_bytes)} at most)"


def _line(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
