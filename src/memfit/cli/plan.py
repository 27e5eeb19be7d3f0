"""``memfit plan``: what one step of a model takes, whether it fits, and the arrangement that would; trains nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from memfit import units
from memfit.cli import model_sources
from memfit.errors import DoesNotFitError

if TYPE_CHECKING:
    from memfit.records import Budget, Plan, Profile

NAME = "plan"
HELP = "show what a training step of a model takes, whether it fits, and the plan that does"

EXIT_DOES_NOT_FIT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    model_sources.add_arguments(parser)
    parser.add_argument(
        "--budget", metavar="BYTES", help='like "12 GiB", or a preset (default: what this machine allows)'
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="LEVER", help="a lever that may change the result"
    )
    parser.add_argument("--probe", action="store_true", help="confirm the plan by a trial in a child process")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints what the step takes and the plan.

    Returns:
        0 where the model can be trained within the budget, as it is or with the plan; 1 where nothing fits.

    Raises:
        MemfitError: The model cannot be had, is not compiled, or leaves its shapes open; the budget cannot be.
    """
    if arguments.backend is not None:
        os.environ["KERAS_BACKEND"] = arguments.backend
    from memfit import fitting
    from memfit.executing.arguments import check_model, with_synthetic_data

    start = time.monotonic()
    model = model_sources.loaded(arguments.model)
    check_model(model)
    data = with_synthetic_data(model, {"batch_size": arguments.batch_size}, arguments.input_shape)
    budget = fitting.budget(arguments.budget)
    profile = fitting.profile(model, **data)
    plan, refusal = None, None
    try:
        probe = True if arguments.probe else None
        plan = fitting.plan(model, budget=budget, allow=arguments.allow, probe=probe, verbose=0, **data)
    except DoesNotFitError as error:
        refusal = str(error)
    found = Found(profile, budget, plan, refusal, time.monotonic() - start)
    print(json.dumps(found.as_dict()) if arguments.json else found, file=sys.stdout)
    return 0 if plan is not None else EXIT_DOES_NOT_FIT


@dataclasses.dataclass(frozen=True)
class Found:
    """What the command found.

    Attributes:
        profile: Of the whole batch.
        budget: What training may take.
        plan: The plan, or None where nothing fits.
        refusal: Why nothing fits.
        seconds: Spent from the model's loading to the plan.
    """

    profile: Profile
    budget: Budget
    plan: Plan | None
    refusal: str | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the whole batch fits, margin included."""
        return self.profile.peak.upper <= self.budget.limiting_bytes

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        profile, plan = self.profile, self.plan
        base = profile.base.host_bytes if profile.base.device_bytes is None else profile.base.device_bytes
        return {
            "backend": profile.backend,
            "device": profile.device,
            "batch_size": profile.batch_size,
            "peak_bytes": profile.peak.bytes,
            "step_peak_bytes": profile.peak.bytes - base,
            "base_bytes": base,
            "margin_bytes": profile.peak.margin,
            "budget_bytes": self.budget.limiting_bytes,
            "fits": self.fits,
            "micro_batch_size": None if plan is None else plan.micro_batch_size,
            "plan_peak_bytes": None if plan is None or plan.peak is None else plan.peak.bytes,
            "method": profile.peak.source,
            "seconds": round(self.seconds, 3),
            "profile": dataclasses.asdict(profile),
            "plan": None if plan is None else dataclasses.asdict(plan),
            "does_not_fit": self.refusal,
        }

    def __str__(self) -> str:
        room, peak = self.budget.limiting_bytes, self.profile.peak
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            str(self.profile),
            "",
            f"The whole batch {verdict}: {units.text(peak.upper)} at most, of {units.text(room)}.",
            str(self.plan) if self.plan is not None else f"Nothing fits: {self.refusal}",
        ]
        return "\n".join(lines)
