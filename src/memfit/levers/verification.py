"""A plan proved on the user's own model: its gradients and state beside the plain step's, on a tiny batch.

Where the batch is not split, dropout stays on: seeds are part of what must agree. Where it is split, draws differ by part,
so they are switched off, as in the test of separability. Moving averages and seeds are compared after the backward pass, so
that one that recomputes must not move them again; a split batch is only trained where none depend on other samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.levers import micro_batch
from memfit.levers.pulled import pulled
from memfit.records import Levers, Split

_LEAST_GRADIENT = 1e-2
"""Gradients that vanish but for rounding (of a bias before BatchNormalization) are compared with this share of the largest."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """What comparing a plan with the plain step found.

    Attributes:
        agrees: Whether the plan may be used.
        difference: The largest difference of a gradient or a state variable, relative to its norm; None where the model's
            own draws, which cannot be fixed, make two plain steps differ as well.
        reason: The finding, as a sentence.
    """

    agrees: bool
    difference: float | None
    reason: str


def verified(model: Any, batch: Any, levers: Levers, split: Split | None, *, backend: Backend) -> Verification:
    """Compares the levers' gradients and state update with the plain step's. The model's state is left as it was.

    Args:
        model: A built and compiled model whose step is Keras' own.
        batch: ``(x, y, sample_weight)`` of numpy arrays; a few samples.
        levers: What the plan pulls.
        split: How the plan splits, at the size of a part of this batch; None where it does not.
        backend: The current backend.
    """
    with keras_seam.preserved_state(model), _settled(model, split):
        plain = _outcome(model, batch, None, backend)
        with pulled(model, levers, backend):
            tolerance = micro_batch.tolerance(model)
            ours = _outcome(model, batch, split, backend)
        found = _difference(plain, ours)
        if found > tolerance and _difference(plain, _outcome(model, batch, None, backend)) > tolerance:
            return Verification(True, None, "not compared: two plain steps of the model differ by its own random draws")
    if found > tolerance:
        reason = (
            f"{levers.text or 'micro-batches'}: dropped, gradients or state differ from the plain step's by {found:.1e}"
        )
        return Verification(False, found, reason)
    return Verification(True, found, f"exact: gradients and state agree with the plain step's to {found:.0e}")


@contextlib.contextmanager
def _settled(model: Any, split: Split | None) -> Any:
    with keras_seam.without_dropout(model) if split is not None else contextlib.nullcontext():
        yield


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """Loss and gradients of a step, and the state that it leaves."""

    gradients: list[Any]
    state: list[np.ndarray]


def _outcome(model: Any, batch: Any, split: Split | None, backend: Backend) -> _Outcome:
    gradients, state = micro_batch.stepped(model, batch, split, backend)
    return _Outcome(gradients, state if split is None else [])


def _difference(expected: _Outcome, actual: _Outcome) -> float:
    """The larger of the gradients' and the state's; seeds and counters, which are whole numbers, must be the same."""
    found = micro_batch.difference(expected.gradients, actual.gradients, least=_LEAST_GRADIENT)
    if not actual.state:
        return found
    pairs = list(zip(expected.state, actual.state, strict=True))
    if any(a.dtype.kind not in "fV" and not np.array_equal(a, b) for a, b in pairs):
        return float("inf")
    floats = [(a, b) for a, b in pairs if a.dtype.kind == "f"]
    return max(found, micro_batch.difference([a for a, _ in floats], [b for _, b in floats]))
