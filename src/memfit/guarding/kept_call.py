"""A call of ``fit`` as a snapshot knows it: whether it is the same, and how its data gets to its place."""

from __future__ import annotations

import types
from typing import Any

from memfit.backends import keras_data, keras_order, pipelines
from memfit.errors import SnapshotError
from memfit.guarding.snapshot import Position, Snapshot


def described(arguments: dict[str, Any]) -> dict[str, Any]:
    """What decides the order and number of the batches of a call of ``fit``, in plain values."""
    x = arguments.get("x")
    shuffle = arguments.get("shuffle")
    return {
        "batch_size": _whole(arguments.get("batch_size")),
        "initial_epoch": int(arguments.get("initial_epoch") or 0),
        "steps_per_epoch": _whole(arguments.get("steps_per_epoch")),
        "num_batches": None if isinstance(x, types.GeneratorType) else keras_data.num_batches(arguments),
        "shuffle": shuffle if isinstance(shuffle, str) else bool(shuffle),
    }


def check_call(own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Compares what ``described`` says of a call with what a snapshot kept.

    Raises:
        SnapshotError: They differ.
    """
    different = [name for name in own if own[name] != saved.get(name)]
    if different:
        shown = ", ".join(f"{name}={own[name]!r} (there: {saved.get(name)!r})" for name in different)
        raise SnapshotError(
            f"The snapshots in the folder are of a run over other batches. Received: {shown}. "
            "Call fit with the arguments of that run, delete the snapshots, or pass another folder as `snapshots`."
        )


def is_over(position: Position, arguments: dict[str, Any]) -> bool:
    """Whether nothing is left of the run."""
    return position.finished or position.epoch >= arguments.get("epochs", 1)


def replays(arguments: dict[str, Any], *, looks: bool) -> bool:
    """Whether the data is one stream over all epochs, which can only be gone through again from its start.

    Args:
        arguments: Of ``fit``, by name.
        looks: Whether ``fit`` draws a batch before its first epoch.
    """
    x = arguments.get("x")
    tools = pipelines.tools_for(x)
    reshuffled = tools is not None and any(stage.kind == "shuffle" for stage in tools.stages(x))
    if keras_order.is_carried_over(x, arguments.get("steps_per_epoch"), looks=looks):
        return True
    return isinstance(x, types.GeneratorType) or reshuffled or bool(arguments.get("steps_per_epoch"))


def resumed_arguments(arguments: dict[str, Any], found: Snapshot | None, *, looks: bool) -> dict[str, Any]:
    """The arguments with which ``fit`` comes to where a snapshot was taken."""
    if found is None:
        return arguments
    epochs, position = arguments.get("epochs", 1), found.position
    if is_over(position, arguments):
        return {**arguments, "initial_epoch": epochs}
    if not replays(arguments, looks=looks):
        return {**arguments, "initial_epoch": position.epoch}
    every = arguments.get("validation_freq", 1)
    wanted = every if not isinstance(every, int) else range(every, epochs + 1, every)
    return {**arguments, "validation_freq": [number for number in wanted if number > position.epoch]}


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
