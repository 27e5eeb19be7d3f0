"""The JAX backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memfit.backends.on_jax import analysis, memory, oom, remat, step
from memfit.backends.protocol import PureFunction, StepKind
from memfit.records import DeviceMemory, Estimate, Split, StepCosts


class _Jax:
    """``backends.protocol.Backend``, answered by the modules of this folder."""

    name = "jax"

    def device_memory(self) -> DeviceMemory | None:
        return memory.device_memory()

    def release(self) -> None:
        memory.release()

    def is_out_of_memory(self, error: BaseException) -> bool:
        return oom.is_out_of_memory(error)

    def step_bytes(self, model: Any, batch: Any, split: Split | None, kind: StepKind = "train") -> Estimate | None:
        return analysis.step_bytes(model, batch, split, kind)

    def attach(self, model: Any, split: Split | None) -> Callable[[], None]:
        return step.attach(model, split)

    def gradients(self, model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
        return step.gradients(model, batch, split)

    def rematerialized(self, function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
        return remat.rematerialized(function, num_inputs=num_inputs)

    def fresh_train_function(self, model: Any) -> Any | None:
        return step.fresh_train_function(model)

    def step_costs(self) -> StepCosts:
        return StepCosts(part=0.005, recomputation=0.45)

    def pass_over(self, arguments: tuple[Any, ...], num_batches: int, logs: Any) -> Any:
        state, iterator = arguments
        for _ in range(num_batches):
            next(iterator)
        return logs, state


backend = _Jax()
