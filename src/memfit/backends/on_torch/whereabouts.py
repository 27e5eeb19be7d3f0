"""Where in a training step an operator runs: its phase and its Keras layer."""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from memfit.records import Moment


class Whereabouts:
    """Follows a step on this thread, from the outside, while the block runs.

    The forward pass is followed by hooks around each layer's call. PyTorch numbers the nodes of the autograd graph in the
    order in which they are made, so that the numbers at a layer's begin and end say which nodes are its own in the backward
    pass.
    """

    def __init__(self) -> None:
        self._layers: list[str] = []
        self._numbers: list[int] = []
        self._paths: list[str | None] = []
        self._updating = False
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []

    def __enter__(self) -> Whereabouts:
        self._hooks = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Inside, the weights are being updated."""
        self._updating = True
        try:
            yield
        finally:
            self._updating = False

    def moment(self, operator: Any) -> Moment:
        """The moment of an operator that runs now."""
        operation = str(operator.overloadpacket)
        if self._updating:
            return Moment("update", None, operation)
        innermost = self._layers[-1] if self._layers else None
        if torch._C._current_graph_task_id() == -1:
            return Moment("forward", innermost, operation)
        # A layer that is called inside the backward pass is one that does its forward pass again.
        return Moment("backward", innermost or self._maker(torch._C._current_autograd_node()), operation)

    def _begin(self, module: Any, _: Any) -> None:
        if self._follows(module):
            self._layers.append(str(module.path or module.name))
            self._note()

    def _end(self, module: Any, *_: Any) -> None:
        if self._follows(module) and self._layers:
            self._layers.pop()
            self._note()

    def _follows(self, module: Any) -> bool:
        return isinstance(module, keras.Layer) and threading.get_ident() == self._thread

    def _note(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._paths.append(self._layers[-1] if self._layers else None)

    def _maker(self, node: Any) -> str | None:
        """The layer that was being called when an autograd node was made; nodes that add up gradients have no number."""
        number = -1 if node is None else node._sequence_nr()
        if not self._numbers or not self._numbers[0] <= number < torch.autograd._get_sequence_nr():
            return None
        return self._paths[bisect.bisect_right(self._numbers, number) - 1]
