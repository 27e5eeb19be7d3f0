"""A plan proved on the user's own model: its gradients and state beside the plain step's, on a tiny batch.

Where the batch is not split, dropout stays on: seeds are part of what must agree. Where it is split, draws differ by part,
so they are switched off, as in the test of separability. Moving averages and seeds are compared after the backward pass, so
that one that recomputes must not move them again; a split batch is only trained where none depend on other samples.

Precision is not exact. The other levers are proved without it, and how far it moves the gradients is measured and told:
of the whole batch, with dropout off, whose draws depend on the dtype.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from memfit.backends import keras_seam
from memfit.backends.protocol import Backend
from memfit.levers import micro_batch, precision
from memfit.levers.pulled import pulled
from memfit.records import Levers, Split

_LEAST_GRADIENT = 1e-2
"""Gradients that vanish but for rounding (of a bias before BatchNormalization) are compared with this share of the largest."""


_FURTHEST = 0.5
"""Gradients in half precision further than this from float32's are not the same gradients with more rounding."""

_MOST_HALVINGS = 24


@dataclasses.dataclass(frozen=True)
class Verification:
    """What comparing a plan with the plain step found.

    Attributes:
        agrees: Whether the plan may be used.
        difference: The largest difference of a gradient or a state variable, relative to its norm; None where the model's
            own draws, which cannot be fixed, make two plain steps differ as well.
        reason: The finding, as a sentence.
        precision_difference: How far the precision lever moves the gradients, relative to their norm; None where it is not
            pulled, or cannot be told from the model's own draws.
    """

    agrees: bool
    difference: float | None
    reason: str
    precision_difference: float | None = None


def verified(model: Any, batch: Any, levers: Levers, split: Split | None, *, backend: Backend) -> Verification:
    """Compares the levers' gradients and state update with the plain step's. The model's state is left as it was.

    Args:
        model: A built and compiled model whose step is Keras' own.
        batch: ``(x, y, sample_weight)`` of numpy arrays; a few samples.
        levers: What the plan pulls. Precision among them is measured, not proved; the optimizer's state is neither.
        split: How the plan splits, at the size of a part of this batch; None where it does not.
        backend: The current backend.
    """
    if levers == Levers(optimizer_state=levers.optimizer_state) and split is None:
        return Verification(True, None, "gradients are the plain step's; the optimizer's moments are rounded to 8 bits")
    levers = dataclasses.replace(levers, optimizer_state=None)
    exact = dataclasses.replace(levers, precision=None)
    proof = _exactly(model, batch, exact, split, backend=backend) if exact or split is not None else None
    if levers.precision is None or (proof is not None and not proof.agrees):
        return proof or _exactly(model, batch, exact, split, backend=backend)
    return _with_precision(model, batch, levers, proof, backend)


def _exactly(model: Any, batch: Any, levers: Levers, split: Split | None, *, backend: Backend) -> Verification:
    """``verified`` for levers that keep the result."""
    for draw in range(micro_batch.DRAWS):
        tried = micro_batch.told_apart(batch, draw) if draw else batch
        proof = _compared(model, tried, levers, split, backend, draw=draw)
        if proof.agrees or not micro_batch.may_be_kink(proof.difference):
            break
    return proof


def _compared(
    model: Any, batch: Any, levers: Levers, split: Split | None, backend: Backend, *, draw: int
) -> Verification:
    with keras_seam.preserved_state(model), _settled(model, split):
        plain = _outcome(model, batch, None, backend)
        with pulled(model, levers, backend):
            tolerance = micro_batch.tolerance(model, draw)
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


def _with_precision(
    model: Any, batch: Any, levers: Levers, proof: Verification | None, backend: Backend
) -> Verification:
    """The proof of the other levers, with what all levers together do to the gradients of the whole batch."""
    with keras_seam.preserved_state(model), keras_seam.without_dropout(model):
        plain = micro_batch.gradients(model, batch, None, backend)
        with pulled(model, levers, backend):
            found = _relative(plain, _finite_gradients(model, batch, backend))
        random = found > _FURTHEST and _relative(plain, micro_batch.gradients(model, batch, None, backend)) > _FURTHEST
    said = [] if proof is None else [proof.reason]
    difference = None if proof is None else proof.difference
    if random:
        said.append(f"{levers.precision}: not compared: two plain steps of the model differ by its own random draws")
        return Verification(True, difference, "; ".join(said))
    if found > _FURTHEST:
        reason = f"{levers.text}: dropped, gradients differ from float32's by {found:.0%} on a tiny batch"
        return Verification(False, difference, reason, found)
    said.append(f"{levers.precision}: gradients differ from float32's by {found:.1%} on a tiny batch")
    return Verification(True, difference, "; ".join(said), found)


def _finite_gradients(model: Any, batch: Any, backend: Backend) -> list[Any]:
    """The gradients at a loss scale under which none overflows, as after the first steps of a run."""
    found = micro_batch.gradients(model, batch, None, backend)
    for _ in range(_MOST_HALVINGS):
        if all(np.isfinite(one).all() for one in found if one is not None) or not precision.lessen_scale(model):
            break
        found = micro_batch.gradients(model, batch, None, backend)
    return found


def _relative(expected: list[Any], actual: list[Any]) -> float:
    """The distance of all gradients together, relative to their norm; infinite where one is not finite."""
    pairs = [(a, b) for a, b in zip(expected[1:], actual[1:], strict=True) if a is not None and b is not None]
    apart = sum(float(np.sum(np.square(np.asarray(a, "float64") - b))) for a, b in pairs)
    norm = sum(float(np.sum(np.square(np.asarray(a, "float64")))) for a, _ in pairs)
    return float(np.sqrt(apart / max(norm, 1e-60))) if np.isfinite(apart) else float("inf")


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
