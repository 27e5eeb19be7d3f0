"""The TensorFlow backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from memfit.backends.around import Around, Wrapper
from memfit.backends.half_precision import HalfPrecision
from memfit.backends.host_bound import HostBound
from memfit.backends.on_tensorflow import analysis, bound, litert, memory, oom, precision, remat, slots, step
from memfit.backends.on_tensorflow.around import TensorFlowAround
from memfit.backends.protocol import Chunks, ChunkUpdate, PureFunction, StepKind
from memfit.records import DeviceMemory, Estimate, Split, StepCosts

_WITHOUT_XLA = -0.1
"""On a CPU a step took 0.2 to 0.6 of its time under XLA (benchmarks/planning.py --xla); that much is not counted on."""

_WITHOUT_XLA_ON_DEVICE = 0.3
"""Not measured: XLA fuses what a GPU is slow at, many small kernels."""


class _TensorFlow:
    """``backends.protocol.Backend``, answered by the modules of this folder."""

    name = "tensorflow"
    survives_on_host = False
    bounds_host = False
    draws_ahead = True

    def device_memory(self) -> DeviceMemory | None:
        return memory.device_memory()

    def bounded_device(self, limit_bytes: int | None) -> AbstractContextManager[str | None]:
        return bound.bounded_device(limit_bytes)

    def release(self) -> None:
        memory.release()

    def keeps_freed(self, model: Any) -> bool:
        return memory.device_memory() is None and not model.jit_compile and not model.run_eagerly

    def host_bound(self, most_bytes: int) -> HostBound:
        raise NotImplementedError("a failed allocation in host memory is not survived")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return oom.is_out_of_memory(error)

    def step_bytes(
        self, model: Any, batch: Any, split: Split | None, kind: StepKind = "train", rest: int = 0
    ) -> Estimate | None:
        return analysis.step_bytes(model, batch, split, kind, rest)

    def compiling_bytes(self, model: Any, batch: Any) -> int:
        return analysis.compiling_bytes(model)

    def prepare(self, model: Any, batch: Any, split: Split | None) -> None:
        """A step is traced when ``fit`` calls it first."""

    def attach(self, model: Any, split: Split | None) -> Callable[[], None]:
        return step.attach(model, split)

    def around(self, model: Any, kind: StepKind, wrapper: Wrapper) -> Around:
        return TensorFlowAround(model, kind, wrapper)

    def gradients(self, model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
        return step.gradients(model, batch, split)

    def rematerialized(self, function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
        return remat.rematerialized(function, num_inputs=num_inputs, compiled=compiled)

    def fresh_train_function(self, model: Any) -> Any | None:
        return None

    def half_precision(self) -> HalfPrecision:
        return precision.of_devices()

    def step_costs(self) -> StepCosts:
        without_xla = _WITHOUT_XLA_ON_DEVICE if tf.config.get_visible_devices("GPU") else _WITHOUT_XLA
        return StepCosts(0.4, part_seconds=1e-3, layer_seconds=1e-4, efficiency=0.5, without_xla=without_xla)

    def update_in_chunks(self, update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> Any:
        return slots.update_in_chunks(update, gradient, chunks, after=after)

    def hold(self, variable: Any, value: Any) -> None:
        slots.hold(variable, value)

    def export_litert(self, model: Any, path: str) -> None:
        litert.export(model, path)

    def pass_over(self, arguments: tuple[Any, ...], num_batches: int, logs: Any) -> Any:
        (iterator,) = arguments
        for _ in range(num_batches):
            next(iterator)
        return logs


backend = _TensorFlow()
