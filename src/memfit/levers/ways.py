"""Ways to run one and the same computation, each with what it adds to the time of a step."""

from __future__ import annotations

import dataclasses
from typing import Any

from memfit.backends.protocol import Backend
from memfit.levers import grouped_update, without_xla
from memfit.records import Levers


def ways(model: Any, backend: Backend, levers: Levers) -> list[tuple[Levers, float]]:
    """Levers with each of the ways to run them, and what the way adds to the time of a step, relative to the plain step.

    Groups of weights cost little and are in every way where they can be made.

    Args:
        model: A compiled model.
        backend: The current backend.
        levers: What is computed: those of ``Levers.computing``.
    """
    grouped = levers.optimizer_state is None and grouped_update.is_possible(model, backend)
    levers = dataclasses.replace(levers, grouped_update=grouped)
    found = [(levers, 0.0)]
    own_pages, without = backend.step_costs().own_pages, without_xla.cost(model, backend)
    if own_pages is not None:
        found.append((dataclasses.replace(levers, own_pages=True), own_pages))
    if without is not None:
        found.append((dataclasses.replace(levers, xla_off=True), without))
    return found
