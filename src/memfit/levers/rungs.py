"""What may be recomputed, from little to as much as helps, each with the time of a step."""

from __future__ import annotations

from memfit.levers import remat
from memfit.levers.remat_choice import Chain
from memfit.profiling.rate import matrix_rate, page_seconds
from memfit.records import Remat, StepCosts

_RUNGS = 8

_FASTEST = 0.5
"""The time of a step is never reckoned to be a smaller share of the plain step's."""


def timed(chain: Chain, costs: StepCosts) -> list[tuple[Remat, float]]:
    """The rungs of a model's chain, and the time of a step with each relative to the plain one."""
    pages = page_seconds() if costs.fresh_pages else 0.0
    faulting = costs.faulting(chain.cost, activations=chain.plain_bytes, rate=matrix_rate(), page_seconds=pages)
    found: list[tuple[Remat, float]] = []
    for rung in remat.ladder(chain, _RUNGS):
        again = remat.recomputation(chain, rung) / max(chain.cost, 1e-9)
        kept = remat.peak_bytes(chain, rung) / max(1, chain.plain_bytes)
        found.append((rung, max(_FASTEST, costs.recomputed(again, kept=kept, faulting=faulting))))
    return found
