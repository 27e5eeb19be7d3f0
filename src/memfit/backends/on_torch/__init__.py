"""The PyTorch backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from memfit.backends.around import Around, Wrapper
from memfit.backends.half_precision import HalfPrecision
from memfit.backends.host_bound import HostBound
from memfit.backends.on_torch import analysis, bound, memory, oom, precision, remat, slots, step
from memfit.backends.on_torch.around import TorchAround
from memfit.backends.on_torch.host_bound import TorchHostBound
from memfit.backends.protocol import Chunks, ChunkUpdate, PureFunction, StepKind
from memfit.records import DeviceMemory, Estimate, Split, StepCosts
from memfit.units import MIB


class _Torch:
    """``backends.protocol.Backend``, answered by the modules of this folder."""

    name = "torch"
    survives_on_host = True
    draws_ahead = False

    def device_memory(self) -> DeviceMemory | None:
        return memory.device_memory()

    def bounded_device(self, limit_bytes: int | None) -> AbstractContextManager[str | None]:
        return bound.bounded_device(limit_bytes)

    def release(self) -> None:
        memory.release()

    @property
    def bounds_host(self) -> bool:
        return memory.device_type() == "cpu" and HostBound.is_possible()

    def keeps_freed(self, model: Any) -> bool:
        return False

    def host_bound(self, most_bytes: int) -> HostBound:
        memory.start_threads()
        return TorchHostBound(most_bytes)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return oom.is_out_of_memory(error)

    def step_bytes(
        self, model: Any, batch: Any, split: Split | None, kind: StepKind = "train", rest: int = 0
    ) -> Estimate | None:
        return analysis.step_bytes(model, batch, split, kind)

    def compiling_bytes(self, model: Any, batch: Any) -> int:
        return 0

    def prepare(self, model: Any, batch: Any, split: Split | None) -> None:
        """Nothing is compiled ahead of a step."""

    def attach(self, model: Any, split: Split | None) -> Callable[[], None]:
        return step.attach(model, split)

    def around(self, model: Any, kind: StepKind, wrapper: Wrapper) -> Around:
        return TorchAround(model, kind, wrapper)

    def gradients(self, model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
        return step.gradients(model, batch, split)

    def rematerialized(self, function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
        return remat.rematerialized(function, compiled=compiled)

    def fresh_train_function(self, model: Any) -> Any | None:
        return None

    def half_precision(self) -> HalfPrecision:
        return precision.of_devices()

    def step_costs(self) -> StepCosts:
        on_cpu = memory.device_type() == "cpu"
        return StepCosts(
            0.55,
            part_seconds=1e-3,
            layer_seconds=2e-4,
            efficiency=0.5,
            own_pages=0.8 if on_cpu else None,
            reissuing=1.5,  # a hook is called for each tensor that is kept
            update_group_bytes=(4 if on_cpu else 64) * MIB,  # what a cache holds; what keeps a GPU busy
        )

    def update_in_chunks(self, update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> Any:
        return slots.update_in_chunks(update, gradient, chunks, after=after)

    def hold(self, variable: Any, value: Any) -> None:
        slots.hold(variable, value)

    def export_litert(self, model: Any, path: str) -> None:
        raise NotImplementedError("LiteRT files are made on TensorFlow")

    def pass_over(self, arguments: tuple[Any, ...], num_batches: int, logs: Any) -> Any:
        return logs  # the batches were drawn before the call


backend = _Torch()
