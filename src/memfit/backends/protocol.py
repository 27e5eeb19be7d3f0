"""The seam between memfit and a framework: what each of ``on_tensorflow``, ``on_jax`` and ``on_torch`` answers.

Nothing outside this folder names a framework. Ask the backend, never which backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from memfit.backends.half_precision import HalfPrecision
from memfit.records import DeviceMemory, Estimate, Split, StepCosts

if TYPE_CHECKING:
    from memfit.backends.around import Around, Wrapper
    from memfit.backends.host_bound import HostBound

StepKind = Literal["train", "test", "predict"]

PureFunction = Callable[[list[Any]], tuple[list[Any], list[Any]]]
"""From tensors to tensors that are differentiated and tensors that are not; the same each time it is called."""

ChunkUpdate = Callable[[Any, Any, list[Any]], list[Any]]
"""From some rows of a gradient, their squares and the values of variables there, the variables' new values there."""


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Variables that are updated together, a part at a time.

    Attributes:
        variables: The weight, then what the optimizer keeps for it.
        strides: How many leading entries of each variable a chunk takes; None where one chunk takes everything.

    Example:
        >>> import numpy as np
        >>> chunks = Chunks([np.zeros((10, 3)), np.zeros(30)], strides=[4, 12])
        >>> chunks.number, chunks.slices(1)
        (3, [slice(4, 8, None), slice(12, 24, None)])
    """

    variables: list[Any]
    strides: list[int] | None = None

    @property
    def number(self) -> int:
        """How many chunks there are; the last may be smaller."""
        return 1 if self.strides is None else -(-self.variables[0].shape[0] // self.strides[0])

    def slices(self, number: int) -> list[slice | None]:
        """Where a chunk is in each variable; None for all of it."""
        if self.strides is None:
            return [None] * len(self.variables)
        ends = [min((number + 1) * s, v.shape[0]) for v, s in zip(self.variables, self.strides, strict=True)]
        return [slice(number * stride, end) for stride, end in zip(self.strides, ends, strict=True)]


class Backend(Protocol):
    """A framework under Keras. Every method is safe to call before, between and after runs."""

    name: str
    """The value of ``keras.backend.backend()``."""

    survives_on_host: bool
    """Whether an allocation that fails in host memory is an exception that leaves the process usable; on a device it is."""

    bounds_host: bool
    """Whether allocations in host memory can be made to fail before the kernel ends the process, and that is survived."""

    draws_ahead: bool
    """Whether ``fit`` draws from a Python generator ahead of the steps, in a thread."""

    def device_memory(self) -> DeviceMemory | None:
        """The accelerator's memory as the framework sees it, or None where training lives in host memory."""

    def bounded_device(self, limit_bytes: int | None) -> AbstractContextManager[str | None]:
        """Around a run: the accelerator's memory is taken as it is needed, or up to a limit, as far as the framework lets it.

        Some frameworks can be told before their first operation only. Call it before ``device_memory``, which may be that.

        Args:
            limit_bytes: What the budget sets, or None.

        Returns:
            A context manager that gives the sentence to report: what was set, or what the user must set before the process
            starts; None where there is nothing to say.
        """

    def release(self) -> None:
        """Gives cached memory back to the system, as far as the framework can."""

    def keeps_freed(self, model: Any) -> bool:
        """Whether what a step gives back stays with the process, where ``release`` does not reach it, and serves the next."""

    def host_bound(self, most_bytes: int) -> HostBound:
        """What makes allocations fail that would take this process above a number of anonymous resident bytes.

        Raises:
            NotImplementedError: ``bounds_host`` is False.
        """

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error, or one that it came from, is the framework's out-of-memory error."""

    def step_bytes(
        self, model: Any, batch: Any, split: Split | None, kind: StepKind = "train", rest: int = 0
    ) -> Estimate | None:
        """Bytes that one step takes on top of what is held between steps, from an analysis that runs nothing.

        Args:
            model: A built and compiled Keras model.
            batch: ``(x, y, sample_weight)`` of ``records.TensorSpec`` with the real batch size.
            split: How the batch is split, or None for the plain step; None for what is no training step.
            kind: "train", "test" (a validation step) or "predict" (of ``batch`` the model's inputs alone are read).
            rest: Samples of the smaller batch that an epoch ends with, which an allocator that keeps what it has been given
                lays out otherwise; 0 where there is none, or that is not known.

        Returns:
            The estimate, or None where this framework cannot analyse the step (the caller then asks a probe).
        """

    def compiling_bytes(self, model: Any, batch: Any) -> int:
        """Host bytes that compiling the plain training step takes while it lasts, guessed; 0 where nothing is compiled.

        Arguments as of ``step_bytes``.
        """

    def prepare(self, model: Any, batch: Any, split: Split | None) -> None:
        """Compiles the training step that ``attach`` will put on, where this framework compiles one and none is kept.

        Compiling takes memory that is given back before the first step takes its own. Arguments as of ``step_bytes``; the
        levers must be on the model.
        """

    def attach(self, model: Any, split: Split | None) -> Callable[[], None]:
        """Puts the micro-batched train step on the model; with None Keras' own, where an analysis has compiled it already.

        Returns:
            A function that takes it off again and leaves the model as it was.
        """

    def around(self, model: Any, kind: StepKind, wrapper: Wrapper) -> Around:
        """Puts a function around the step of a model; ``take_off`` of the result takes it off again.

        Args:
            model: A Keras model; for "train" and "test" a compiled one.
            kind: "train" (whatever step ``attach`` has put on), "test" or "predict".
            wrapper: Called with the step and a batch in the step's place, and may call it on parts of the batch, or again
                after a failure: a "test" or "predict" step that fails leaves the state that it was given.
        """

    def gradients(self, model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
        """Loss and gradients of one batch in training mode.

        Moving averages and seeds are afterwards what the step makes of them; the caller keeps and restores them.

        Args:
            model: A built and compiled Keras model.
            batch: ``(x, y, sample_weight)`` of numpy arrays.
            split: How the batch is split, or None for the plain step's gradients.

        Returns:
            The loss, and one numpy array (or None) for each trainable weight.
        """

    def rematerialized(self, function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
        """The function with a backward pass that keeps its arguments alone and computes it again.

        Args:
            function: Touches no variable and no state; its arguments are all that a gradient is wanted for.
            num_inputs: How many of its arguments, from the first, are made by the forward pass; the others are state.
            compiled: Whether it will be part of a step that XLA or torch.compile compiles.
        """

    def fresh_train_function(self, model: Any) -> Any | None:
        """A train function for Keras' own step that no trace of an earlier one serves; None where Keras makes one itself."""

    def half_precision(self) -> HalfPrecision:
        """Which half precision the device that trains computes in hardware, and how that is known."""

    def step_costs(self) -> StepCosts:
        """What levers add to the time of a step on this framework and device."""

    def pass_over(self, arguments: tuple[Any, ...], num_batches: int, logs: Any) -> Any:
        """What a train function gives for these arguments, where the step is not taken and its data is thrown away.

        Args:
            arguments: Of the train function: an iterator of batches, state and iterator, or the batches themselves.
            num_batches: Batches of one call.
            logs: To give back.

        Raises:
            StopIteration: The data has ended.
        """

    def update_in_chunks(self, update: ChunkUpdate, gradient: Any, chunks: Chunks, *, after: Any = None) -> Any:
        """Writes an optimizer's update into variables, with the temporary arrays of one chunk at a time.

        Args:
            update: Pure; called for each chunk, or traced for it.
            gradient: Of ``chunks.variables[0]``; may be sparse where the framework has sparse gradients.
            chunks: The variables.
            after: What the call before returned, in one application of an optimizer: it comes first.

        Returns:
            What the next call waits for; None where calls run in their order anyway.
        """

    def hold(self, variable: Any, value: Any) -> None:
        """Puts an array of any shape in the place of what a Keras variable holds, which is freed.

        An empty one makes room while nobody reads the variable; the variable itself, and traces that read it, stay.
        """

    def export_litert(self, model: Any, path: str) -> None:
        """Writes a LiteRT file of a built model, its weights as int8 of dynamic range.

        Raises:
            NotImplementedError: This framework has no LiteRT converter; TensorFlow alone does.
        """
