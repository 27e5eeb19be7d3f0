"""The JAX backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from memfit.backends.around import Around, Wrapper
from memfit.backends.half_precision import HalfPrecision
from memfit.backends.host_bound import HostBound
from memfit.backends.on_jax import analysis, bound, memory, oom, precision, remat, slots, step
from memfit.backends.on_jax.around import JaxAround
from memfit.backends.protocol import Chunks, ChunkUpdate, PureFunction, StepKind
from memfit.records import DeviceMemory, Estimate, Split, StepCosts


class _Jax:
    """``backends.protocol.Backend``, answered by the modules of this folder."""

    name = "jax"
    survives_on_host = False
    bounds_host = False
    draws_ahead = False

    def device_memory(self) -> DeviceMemory | None:
        return memory.device_memory()

    def bounded_device(self, limit_bytes: int | None) -> AbstractContextManager[str | None]:
        return bound.bounded_device(limit_bytes)

    def release(self) -> None:
        memory.release()

    def keeps_freed(self, model: Any) -> bool:
        return False

    def host_bound(self, most_bytes: int) -> HostBound:
        raise NotImplementedError("a failed allocation in host memory is not survived")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return oom.is_out_of_memory(error)

    def step_bytes(
        self, model: Any, batch: Any, split: Split | None, kind: StepKind = "train", rest: int = 0
    ) -> Estimate | None:
        return analysis.step_bytes(model, batch, split, kind)

    def compiling_bytes(self, model: Any, batch: Any) -> int:
        return analysis.compiling_bytes(model, batch)

    def prepare(self, model: Any, batch: Any, split: Split | None) -> None:
        analysis.prepare(model, batch, split)

    def attach(self, model: Any, split: Split | None) -> Callable[[], None]:
        return step.attach(model, split)

    def around(self, model: Any, kind: StepKind, wrapper: Wrapper) -> Around:
        return JaxAround(model, kind, wrapper)

    def gradients(self, model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
        return step.gradients(model, batch, split)

    def rematerialized(self, function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
        return remat.rematerialized(function, num_inputs=num_inputs)

    def fresh_train_function(self, model: Any) -> Any | None:
        return step.fresh_train_function(model)

    def half_precision(self) -> HalfPrecision:
        return precision.of_devices()

    def step_costs(self) -> StepCosts:
        # XLA allocates the activations of a step in one block.
        fresh = memory.device_memory() is None
        return StepCosts(0.35, part_seconds=1e-3, layer_seconds=3e-5, efficiency=0.8, fresh_pages=fresh)

    def update_in_chunks(self, update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> Any:
        return slots.update_in_chunks(update, gradient, chunks, after=after)

    def hold(self, variable: Any, value: Any) -> None:
        slots.hold(variable, value)

    def export_litert(self, model: Any, path: str) -> None:
        raise NotImplementedError("LiteRT files are made on TensorFlow")

    def pass_over(self, arguments: tuple[Any, ...], num_batches: int, logs: Any) -> Any:
        state, iterator = arguments
        for _ in range(num_batches):
            next(iterator)
        return logs, state


backend = _Jax()
