"""What is asked of the planner."""

from __future__ import annotations

import dataclasses

from memfit.planning.attempt import Attempt
from memfit.records import Budget, Plan


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked of the planner.

    Attributes:
        budget: What training may take.
        allow: Levers that change the result and may be pulled.
        micro_batch_size: Set by hand or by a plan; None to find it.
        fixed: The plan to follow, where one was passed.
        probe: Whether a trial in a child process confirms the plan; None where the analysis is weak.
        quiet: Whether to show nothing while it takes long.
        validation_batch_size: Samples of a validation step, where another number than the training step's was asked for.
        bounded: Whether a step that takes more than the budget fails and is tried again smaller, so that margins may be
            what is mostly enough.
        attempt: Told what is attempted although it is not predicted to fit, before anything of it begins; None where the
            process ends for good if that fails, so that it is refused.
    """

    budget: Budget
    allow: frozenset[str]
    micro_batch_size: int | None = None
    fixed: Plan | None = None
    probe: bool | None = None
    quiet: bool = False
    validation_batch_size: int | None = None
    bounded: bool = False
    attempt: Attempt | None = None
