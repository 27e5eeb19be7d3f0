"""What may be recomputed, from little to as much as helps, each with the time of a step."""

from __future__ import annotations

import dataclasses

from memfit.levers import remat
from memfit.levers.remat_choice import Chain
from memfit.profiling.rate import matrix_rate, page_seconds
from memfit.records import Remat, StepCosts

_RUNGS = 8

_FASTEST = 0.5
"""The time of a step is never reckoned to be a smaller share of the plain step's."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way to recompute.

    Attributes:
        remat: The segments; None for none.
        time: Of a step of the whole batch, relative to the plain step.
        part_time: What recomputing adds for each further part of a batch.
    """

    remat: Remat | None = None
    time: float = 1.0
    part_time: float = 0.0


def timed(chain: Chain, costs: StepCosts) -> list[Rung]:
    """The rungs of a model's chain, from little recomputation to as much as helps."""
    pages, rate = page_seconds() if costs.fresh_pages else 0.0, matrix_rate()
    faulting = costs.faulting(chain.cost, activations=chain.plain_bytes, rate=rate, page_seconds=pages)
    found: list[Rung] = []
    for rung in remat.ladder(chain, _RUNGS):
        again = remat.recomputation(chain, rung) / max(chain.cost, 1e-9)
        kept = remat.peak_bytes(chain, rung) / max(1, chain.plain_bytes)
        time = costs.recomputed(again, kept=kept, faulting=faulting)
        layers_again = remat.issued_again(chain, rung)
        part_time = costs.part_again(chain.cost, num_layers=chain.rounds, layers_again=layers_again, rate=rate)
        found.append(Rung(rung, max(_FASTEST, time), part_time))
    return found
