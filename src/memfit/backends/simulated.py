"""A device with a byte budget and scripted failures: for memfit's tests, and for tests of code that uses memfit.

Nothing here needs Keras or a framework. A "model" is a ``SimulatedModel`` that says what its step takes; its ``fit`` takes
the memory, and fails like an accelerator where there is none left.

Example:
    >>> backend = SimulatedBackend(total_bytes=1000)
    >>> model = SimulatedModel(backend, bytes_per_sample=100, fixed_bytes=50)
    >>> model.fit(batch_size=12)
    Traceback (most recent call last):
    ...
    memfit.backends.simulated.SimulatedOutOfMemory: 1250 bytes wanted of 1000
    >>> detach = backend.attach(model, Split(micro_batch_size=4))
    >>> model.fit(batch_size=12)
    >>> backend.device_memory().peak_bytes
    450
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from memfit.backends.half_precision import HalfPrecision, of_compute_capability
from memfit.backends.host_bound import HostBound
from memfit.backends.protocol import Chunks, ChunkUpdate, PureFunction, StepKind
from memfit.records import DeviceMemory, Estimate, Split, StepCosts


class SimulatedOutOfMemory(RuntimeError):  # noqa: N818 - named as frameworks name theirs
    """What the simulated device raises."""


class SimulatedBackend:
    """Implements ``backends.protocol.Backend`` over a number of bytes.

    Args:
        total_bytes: The device's memory.
        failures: Steps (counted from 0 over the backend's life) that fail whatever they take: fragmentation, a neighbour.
        prediction_error: What ``step_bytes`` is off by, as a factor: 0.9 predicts a tenth too little.
    """

    name = "simulated"
    survives_on_host = False
    bounds_host = False
    draws_ahead = False

    def __init__(self, total_bytes: int, *, failures: tuple[int, ...] = (), prediction_error: float = 1.0) -> None:
        self.total_bytes = total_bytes
        self.peak_bytes = 0
        self.steps = 0
        self.releases = 0
        self._failures = failures
        self._prediction_error = prediction_error

    def device_memory(self) -> DeviceMemory:
        return DeviceMemory("gpu", self.total_bytes, 0, self.peak_bytes)

    def release(self) -> None:
        self.releases += 1

    @contextlib.contextmanager
    def bounded_device(self, limit_bytes: int | None) -> Iterator[str | None]:
        before, self.total_bytes = self.total_bytes, min(self.total_bytes, limit_bytes or self.total_bytes)
        try:
            yield None if limit_bytes is None else f"limited to {self.total_bytes} bytes"
        finally:
            self.total_bytes = before

    def keeps_freed(self, model: Any) -> bool:
        return False

    def host_bound(self, most_bytes: int) -> HostBound:
        raise NotImplementedError("a failed allocation in host memory is not survived")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, SimulatedOutOfMemory)

    def step_bytes(
        self, model: SimulatedModel, batch: Any, split: Split | None, kind: StepKind = "train", rest: int = 0
    ) -> Estimate:
        """``batch`` is the number of samples; every kind of step takes the same, whatever its epoch ends with."""
        return Estimate(int(model.step_bytes(batch, split) * self._prediction_error), 0, "scripted")

    def compiling_bytes(self, model: SimulatedModel, batch: Any) -> int:
        """Nothing is compiled."""
        return 0

    def prepare(self, model: SimulatedModel, batch: Any, split: Split | None) -> None:
        """Nothing is compiled."""

    def attach(self, model: SimulatedModel, split: Split | None) -> Callable[[], None]:
        previous = model.split
        model.split = split

        def detach() -> None:
            model.split = previous

        return detach

    def around(self, model: SimulatedModel, kind: StepKind, wrapper: Callable[..., Any]) -> SimulatedAround:
        """Only training steps are simulated."""
        return SimulatedAround(model, wrapper)

    def gradients(self, model: SimulatedModel, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
        shift = model.mixing if split is not None else 0.0
        return 1.0, [1.0 + shift]

    def rematerialized(self, function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
        return function

    def fresh_train_function(self, model: SimulatedModel) -> None:
        return None

    def half_precision(self) -> HalfPrecision:
        return of_compute_capability((7, 5))

    def step_costs(self) -> StepCosts:
        return StepCosts(recomputation=0.33, part_seconds=0.0, layer_seconds=1e-4, efficiency=1.0)

    def update_in_chunks(self, update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> None:
        raise NotImplementedError("A SimulatedModel has no optimizer.")

    def hold(self, variable: Any, value: Any) -> None:
        raise NotImplementedError("A SimulatedModel has no variables.")

    def export_litert(self, model: Any, path: str) -> None:
        raise NotImplementedError("A simulated device makes no LiteRT files")

    def pass_over(self, arguments: tuple[Any, ...], num_batches: int, logs: Any) -> Any:
        return logs

    def take(self, num_bytes: int) -> None:
        """One step that needs so many bytes."""
        step, self.steps = self.steps, self.steps + 1
        if num_bytes > self.total_bytes or step in self._failures:
            raise SimulatedOutOfMemory(f"{num_bytes} bytes wanted of {self.total_bytes}")
        self.peak_bytes = max(self.peak_bytes, num_bytes)


@dataclasses.dataclass
class SimulatedModel:
    """A model that says what its step takes.

    Attributes:
        backend: Where its steps run.
        bytes_per_sample: Activations of one sample.
        fixed_bytes: Gradients and whatever else does not grow with the batch.
        mixing: How far the gradient of parts is from that of the whole; 0 for a model that treats samples apart.
        split: How its step is split now.
        tears: Whether a step that fails has begun to write weights.
        weights: What training makes of the model: the samples that were trained, in order of the steps.
        around: What stands around its step.
    """

    backend: SimulatedBackend
    bytes_per_sample: int
    fixed_bytes: int = 0
    mixing: float = 0.0
    split: Split | None = None
    tears: bool = False
    weights: tuple[int, ...] = ()
    around: SimulatedAround | None = dataclasses.field(default=None, repr=False)

    def step_bytes(self, batch_size: int, split: Split | None) -> int:
        """Bytes of a step over a batch."""
        samples = batch_size if split is None else min(batch_size, split.micro_batch_size)
        return self.fixed_bytes + samples * self.bytes_per_sample

    def fit(self, *, batch_size: int, steps: int = 1) -> None:
        """Takes the memory of some steps.

        Raises:
            SimulatedOutOfMemory: A step needs more than the device has, or was scripted to fail.
        """
        for _ in range(steps):
            if self.around is None:
                self.step(batch_size)
            else:
                self.around(batch_size)

    def step(self, batch_size: int) -> None:
        """One step: takes the memory, and then its update is in the weights."""
        try:
            self.backend.take(self.step_bytes(batch_size, self.split))
        except SimulatedOutOfMemory:
            if self.tears:
                self.weights = (*self.weights, -batch_size)
            raise
        self.weights = (*self.weights, batch_size)


class SimulatedAround:
    """As ``backends.around.Around``: a function around the step of a model."""

    tells_writes = False

    def __init__(self, model: SimulatedModel, wrapper: Callable[..., Any]) -> None:
        self._model = model
        self._wrapper = wrapper
        model.around = self

    def __call__(self, batch_size: int) -> Any:
        return self._wrapper(self._model.step, batch_size)

    def signature(self, batch: int) -> int:
        return batch

    def keep(self, *, whole: bool) -> SimulatedState:
        return SimulatedState(self._model, self._model.weights, whole)

    def exchange(self, change: Callable[[], None]) -> None:
        change()

    def take_off(self) -> None:
        self._model.around = None

    def rescue(self) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class SimulatedState:
    """As ``backends.around.Kept``: without a copy, weights that were not written can be told."""

    model: SimulatedModel
    weights: tuple[int, ...]
    whole: bool

    def restore(self) -> bool:
        if not self.whole and self.model.weights != self.weights:
            return False
        self.model.weights = self.weights
        return True
