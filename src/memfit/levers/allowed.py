"""The levers that change the result: which of them are allowed and can be pulled on a model, and which would help."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from memfit.backends.protocol import Backend
from memfit.levers import optimizer_state, precision
from memfit.records import NO_LEVERS, Levers
from memfit.units import text

_TIMES = {"precision": 1.01, "optimizer_state": 1.05}
"""Time of a step relative to the plain one. They are pulled for the bytes that they save: what they cost or save in time
differs by device and is not known before the run, so that exact levers of the same time go first."""

_WORTH = 0.02
"""A lever that saves less than this share of the budget is not proposed."""


@dataclasses.dataclass(frozen=True)
class Inexact:
    """One combination of levers that change the result.

    Attributes:
        levers: The setting; the exact ones of it are not pulled.
        time: Of a step, relative to the plain one.
    """

    levers: Levers = NO_LEVERS
    time: float = 1.0


def combinations(model: Any, spec: Any, allow: Collection[str], backend: Backend) -> tuple[Inexact, ...]:
    """Every combination of the allowed levers that can be pulled on the model, none at all first.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec.
        allow: Names of levers, as ``memfit.fit`` takes them.
        backend: The current backend.
    """
    found = [Inexact()]
    for name in _TIMES:
        setting = _setting(name, model, spec, backend) if name in allow else None
        if setting is not None:
            found += [Inexact(_with(one.levers, name, setting), one.time * _TIMES[name]) for one in found]
    return tuple(found)


def refused(model: Any, spec: Any, allow: Collection[str], backend: Backend) -> tuple[str, ...]:
    """Why levers that are allowed are not pulled, as sentences."""
    return tuple(
        f"{name} is allowed but not pulled: {reason}"
        for name in _TIMES
        if name in allow and (reason := _blocked(name, model, spec, backend)) is not None
    )


def proposed(model: Any, spec: Any, allow: Collection[str], backend: Backend, *, ceiling: int) -> tuple[str, ...]:
    """What the user could allow to need less, as sentences.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec.
        allow: What is allowed already.
        backend: The current backend.
        ceiling: The budget in bytes.
    """
    sentences = []
    if "precision" not in allow and _setting("precision", model, spec, backend) is not None:
        half = str(precision.setting(backend)).removeprefix("mixed_")
        sentences.append(f'with allow={{"precision"}} layers would compute in {half}, with half the activations')
    option = optimizer_state.options(model)
    if "optimizer_state" not in allow and option.setting is not None and option.saved_bytes > _WORTH * ceiling:
        saved = text(option.saved_bytes)
        sentences.append(
            f'with allow={{"optimizer_state"}} the moments of the optimizer would take {saved} less, in 8 bits'
        )
    return tuple(sentences)


def saved_bytes(model: Any, levers: Levers) -> int:
    """What levers free of the bytes that are held between steps."""
    return 0 if levers.optimizer_state is None else optimizer_state.saved_bytes(model)


def _with(levers: Levers, name: str, setting: str) -> Levers:
    if name == "precision":
        return dataclasses.replace(levers, precision=setting)
    return dataclasses.replace(levers, optimizer_state=setting)


def _setting(name: str, model: Any, spec: Any, backend: Backend) -> str | None:
    if _blocked(name, model, spec, backend) is not None:
        return None
    return precision.setting(backend) if name == "precision" else optimizer_state.SETTING


def _blocked(name: str, model: Any, spec: Any, backend: Backend) -> str | None:
    if name == "precision":
        return precision.blocked_reason(model, spec, backend)
    option = optimizer_state.options(model)
    return option.reason if option.setting is None else None
