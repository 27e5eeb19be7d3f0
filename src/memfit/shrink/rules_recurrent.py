"""Rules for recurrent layers and the wrappers around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from memfit.shrink.calls import Call, Rule
from memfit.shrink.channels import Atoms, Channels

_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def recurrent(call: Call) -> list[Channels] | None:
    """LSTM, GRU and SimpleRNN: units in every gate; its states too where it returns them."""
    layer = call.layer
    units = call.made(layer.units)
    taken = call.taken()
    for state in call.inputs[1:]:
        call.ties.tie(call.along(state), units)
    _cut_cell(call, layer, taken, units)
    call.size(("units",), units)
    return [call.given(units, number=i) for i in range(len(call.shapes))]


def bidirectional(call: Call) -> list[Channels] | None:
    """Two recurrent layers side by side, joined as ``merge_mode`` says."""
    layer = call.layer
    ways = (layer.forward_layer, layer.backward_layer)
    kinds = {type(way).__name__ for way in ways}
    if not kinds <= set(_GATES) or len(call.shapes) != 1 or len(call.inputs) != 1 or layer.merge_mode is None:
        return None
    taken = call.taken()
    units = call.made(ways[0].units)
    # Both ways are made from one configuration: they keep the same number, so that each loads where the other does.
    for name, way in zip(("layer", "backward_layer"), ways, strict=True):
        _cut_cell(call, way, taken, units)
        if name in layer.get_config():
            call.size((name, "config", "units"), units)
    return [call.given(np.concatenate([units, units]) if layer.merge_mode == "concat" else units)]


def time_distributed(call: Call) -> list[Channels] | None:
    """A dense layer or an embedding at every step; others are left."""
    inner = call.layer.layer
    if type(inner).__name__ != "Dense":
        return None
    taken, units = call.taken(), call.made(inner.units)
    call.cut(inner.kernel, {0: taken, 1: units}, scores=True)
    call.cut(inner.bias, {0: units})
    call.size(("layer", "config", "units"), units)
    return [call.given(units)]


def _cut_cell(call: Call, layer: Any, taken: Atoms | None, units: Atoms) -> None:
    cell, gates = layer.cell, np.tile(units, _GATES[type(layer).__name__])
    call.cut(cell.kernel, {0: taken, 1: gates}, scores=True)
    call.cut(cell.recurrent_kernel, {0: units, 1: gates}, scores=True)
    call.cut(cell.bias, {-1: gates})


RULES: dict[str, Rule] = {
    "LSTM": recurrent,
    "GRU": recurrent,
    "SimpleRNN": recurrent,
    "Bidirectional": bidirectional,
    "TimeDistributed": time_distributed,
}
