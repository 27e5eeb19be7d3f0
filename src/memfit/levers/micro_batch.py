"""Micro-batching: a batch goes through the step in parts, with one update. Exact where the model treats samples apart.

Whether it does is tested on the model itself: the gradient of a tiny batch as a whole against that of the same batch in
parts. Layers that mix samples (BatchNormalization, a contrastive loss) differ by orders of magnitude more than rounding.
Where the model draws random numbers that cannot be switched off, the test is instead whether one sample reaches the loss
of the others: the gradient of the others' loss must not change when that sample is exchanged.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
from typing import Any

import keras
import numpy as np

from memfit.backends import host_allocator, keras_losses, keras_seam
from memfit.backends.protocol import Backend
from memfit.records import Split

SAMPLES = 5
"""Samples of the tiny batch where there is room: parts of 2, 2 and 1, so that the ragged tail is tested too."""

FEWEST = 2
"""Samples of the smallest batch that can be split."""

PART = 2
"""Samples of a part of it."""

DRAWS = 3
"""Tiny batches that are tried, where the difference may be a kink's."""

_KINK = 0.1
"""A smaller difference may come of a maximum or a ReLU that rounding tips over, as a U-Net showed now and then. One of a
layer that mixes samples, or of a lever that is wrong, is there on every batch."""

_CHUNK = 2**18
"""Numbers of two gradients that are compared at a time."""


@dataclasses.dataclass(frozen=True)
class Separability:
    """Whether a model's step can be split.

    Attributes:
        split: How, at any micro-batch size; None where the model mixes samples or cannot be tested.
        difference: The largest relative difference between the gradients of whole and parts; None where not compared.
        reason: The finding, as a sentence.
    """

    split: Split | None
    difference: float | None
    reason: str


def blocked_reason(model: Any) -> str | None:
    """Why the model's step cannot be split at all, or None."""
    if keras_seam.overrides(model, "train_step"):
        return f"{type(model).__name__} has its own train_step, which memfit cannot split; it is trained as it is"
    if keras_seam.is_distributed(model):
        return "the model is distributed over several devices, and its step is not split there"
    if not model.trainable_variables:
        return "the model has no trainable weights"
    return None


def separability(model: Any, batch: Any, backend: Backend) -> Separability:
    """Tests on a tiny batch whether parts give the gradient of the whole. The model's state is left as it was.

    Args:
        model: A built and compiled model whose step is Keras' own.
        batch: ``(x, y, sample_weight)`` of numpy arrays, at least two samples.
        backend: The current backend.
    """
    num_samples = keras_seam.flatten(batch)[0].shape[0]
    if num_samples < 2:
        return Separability(None, None, "one sample is too few to test whether the model treats samples apart")
    part = min(PART, num_samples - 1)
    for draw in range(DRAWS):
        most = tolerance(model, draw)
        finding = _separability(model, told_apart(batch, draw), part, backend, most=most)
        if finding.split is not None or not may_be_kink(finding.difference):
            break
    return finding


def _separability(model: Any, batch: Any, part: int, backend: Backend, *, most: float) -> Separability:
    with keras_seam.preserved_state(model), keras_seam.without_dropout(model), keras_seam.keeping_programs(model):
        whole = gradients(model, batch, None, backend)
        with keras_seam.preserved_state(model):
            keras_seam.advance_seeds(model)
            # Named by nothing, so that it is gone before parts are computed.
            repeats = difference(whole, gradients(model, batch, None, backend)) <= tolerance(model)
        if not repeats:
            return _random_separability(model, batch, part, backend, most=most)
        return _exact_separability(model, batch, part, (whole, backend), most=most)


def _exact_separability(model: Any, batch: Any, part: int, reference: Any, *, most: float) -> Separability:
    whole, backend = reference
    call_losses = ("mean", "sum") if keras_losses.has_call_losses(model) else ("mean",)
    scalar_losses = ("mean", "sum") if keras_losses.may_be_scalar(model) else ("mean",)
    smallest = float("inf")
    for call, scalar in itertools.product(call_losses, scalar_losses):
        split = Split(part, call_losses=call, scalar_losses=scalar)
        found = difference(whole, gradients(model, batch, split, backend))
        if found <= most:
            return Separability(split, found, f"exact: gradients of whole and parts agree to {found:.0e}")
        smallest = min(smallest, found)
    return Separability(
        None,
        smallest,
        f"the model mixes samples: gradients of whole and parts differ by {smallest:.1%}{_suspects(model)}",
    )


def _random_separability(model: Any, batch: Any, part: int, backend: Backend, *, most: float) -> Separability:
    x, y, _ = batch
    num_samples = keras_seam.flatten(batch)[0].shape[0]
    others = np.ones((num_samples,), "float32")
    others[-1] = 0.0
    exchanged = keras_seam.map_leaves(lambda leaf: np.concatenate([leaf[:-1], leaf[:1]]), x)
    before = gradients(model, (x, y, others), None, backend)
    found = difference(before, gradients(model, (exchanged, y, others), None, backend))
    if found > most:
        reason = f"the model mixes samples: one changes the gradient of the others by {found:.1%}{_suspects(model)}"
        return Separability(None, found, reason)
    return Separability(
        Split(part), None, "the model treats samples apart; its own random draws differ by part, equal in distribution"
    )


def gradients(model: Any, batch: Any, split: Split | None, backend: Backend) -> list[Any]:
    """Loss and gradients of a batch; the model's state is left as it was."""
    return stepped(model, batch, split, backend)[0]


def stepped(model: Any, batch: Any, split: Split | None, backend: Backend) -> tuple[list[Any], list[np.ndarray]]:
    """Loss and gradients of a batch, and the state that they leave; the model's is then put back as it was.

    What the step took goes back to the system: plans are made for the room that is left.
    """
    restore_heap = host_allocator.map_large_blocks()
    try:
        with keras_seam.preserved_state(model):
            loss, found = backend.gradients(model, batch, split)
            state = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.non_trainable_variables]
    finally:
        restore_heap()
        gc.collect()
        host_allocator.trim()
    return [np.asarray(loss), *found], state


def difference(expected: list[Any], actual: list[Any], *, least: float = 1e-4) -> float:
    """The largest difference between two lists of arrays, relative to each array's norm.

    Args:
        expected: Arrays, or None.
        actual: The same number of them.
        least: An array's norm counts as this share of the largest norm at the least: a gradient that vanishes but for
            rounding is not compared with itself.
    """
    norms = [0.0 if array is None else _norm(array) for array in expected]
    floor = least * max(norms, default=0.0)
    worst = 0.0
    for a, b, norm in zip(expected, actual, norms, strict=True):
        if a is None or b is None:
            continue
        apart = _norm(a, b)
        worst = max(worst, apart / max(norm, floor, 1e-30)) if np.isfinite(apart) else float("inf")
    return worst


def _norm(array: Any, other: Any = None) -> float:
    """The Euclidean norm of an array, or of its difference from another, without a copy of either."""
    flat, others = np.ravel(array), None if other is None else np.ravel(other)
    total = 0.0
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK].astype("float64")
        if others is not None:
            chunk -= others[start : start + _CHUNK]
        total += float(np.dot(chunk, chunk))
    return total**0.5


def tolerance(model: Any, draw: int = 0) -> float:
    """What rounding may do: a mixing layer differs by tenths, also in half precision. Draws after the first are to show that
    there is nothing but rounding, and may do a tenth of it."""
    half = any(layer.compute_dtype in ("float16", "bfloat16") for layer in [model, *keras_seam.flat_layers(model)])
    return (5e-2 if half else 1e-3) / (10 if draw else 1)


def may_be_kink(found: float | None) -> bool:
    """Whether a difference is one that another tiny batch may not show."""
    return found is not None and found < _KINK


def told_apart(batch: Any, draw: int) -> Any:
    """The batch with noise and a brightness of its own on each sample's floats: alike samples hide a layer that mixes them.

    Each draw has other noise, and its samples in another order.
    """
    x, y, sample_weight = keras_seam.map_leaves(lambda leaf: np.roll(leaf, draw, axis=0), batch)
    noise = np.random.default_rng(draw)

    def noisy(leaf: np.ndarray) -> np.ndarray:
        if leaf.dtype.kind != "f":
            return leaf
        clean = np.nan_to_num(leaf, nan=0.0, posinf=0.0, neginf=0.0)
        scale = 0.1 * float(np.std(clean)) or 1.0
        brightness = np.linspace(0.5, 2.0, len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
        return (brightness * clean + noise.normal(scale=scale, size=leaf.shape)).astype(leaf.dtype)

    return keras_seam.map_leaves(noisy, x), y, sample_weight


def _suspects(model: Any) -> str:
    names = sorted(
        {type(layer).__name__ for layer in keras_seam.flat_layers(model) if "Normalization" in type(layer).__name__}
    )
    names = [name for name in names if name.startswith(("Batch", "SpectralBatch"))]
    return f" ({', '.join(names)})" if names else ""
