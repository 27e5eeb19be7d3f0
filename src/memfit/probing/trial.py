"""A trial of one plan in a child process under a real limit: the user's model, synthetic data of the real shapes."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from memfit import budgeting
from memfit.backends import keras_saving, keras_seam
from memfit.backends.protocol import Backend
from memfit.errors import ProbeError
from memfit.probing.capped import Fed, run_capped
from memfit.probing.trial_child import RESULT
from memfit.records import NO_LEVERS, Estimate, Levers, Split
from memfit.units import MIB

_SECONDS = 180
_LEAST_ROOM = 1024 * MIB
"""A framework alone takes 300 to 700 MiB in the child; with less room than this the trial would only measure that."""

_MARGIN = 0.1

MEASURED = "probe"
"""The source of an estimate that a trial measured to its end."""


def step_bytes(
    model: Any,
    spec: Any,
    split: Split | None,
    *,
    backend: Backend,
    levers: Levers = NO_LEVERS,
) -> Estimate | None:
    """What two training steps took in a child, or None where no trial can be made.

    There is none on an accelerator (a child cannot see the memory that this process has reserved), where there is no room
    for a child beside this process, and for a model that cannot be saved.

    Args:
        model: A built and compiled model.
        spec: ``(x, y, sample_weight)`` of TensorSpec.
        split: How the batch is split, or None.
        backend: The current backend.
        levers: What else the child pulls.

    Returns:
        The bytes on top of what is held between steps. Where the child died of the limit: more than the room that it had.
    """
    room = budgeting.budget().host_bytes - budgeting.reading().host_bytes
    if backend.device_memory() is not None or room < _LEAST_ROOM:
        return None
    try:
        job = _described(model, {"spec": spec, "split": split, "levers": levers})
    except ProbeError:
        return None
    printed: list[str] = []
    run = run_capped(
        Fed([sys.executable, "-m", "memfit.probing.trial_child"], job),
        room,
        env=environment(backend),
        timeout=_SECONDS,
        on_output=lambda _, line: printed.append(line) if line.startswith(RESULT) else None,
    )
    if run.killed or run.returncode in (134, 137, 139):
        return Estimate(room, room, "probe: killed by the limit")
    if run.returncode != 0 or not printed:
        return None
    measured = json.loads(printed[-1].removeprefix(RESULT))
    taken = max(0, measured["peak"] - measured["base"])
    return Estimate(taken, int(_MARGIN * taken) + 16 * MIB, MEASURED)


def environment(backend: Backend) -> dict[str, str]:
    """Of a child that imports what this process can, on the same backend."""
    return {
        **os.environ,
        "KERAS_BACKEND": backend.name,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _described(model: Any, job: dict[str, Any]) -> bytes:
    """What the child needs: the model as Keras describes it, the classes of the user's, and what to try."""
    import cloudpickle

    try:
        described = {"model": keras_saving.description(model), "classes": keras_seam.own_objects(model)}
        return cloudpickle.dumps({**described, **job})
    except Exception as error:
        raise ProbeError(f"The model cannot be sent to a child process: {error}") from error
