"""The seam between memfit and a framework: what each of ``on_tensorflow``, ``on_jax`` and ``on_torch`` answers.

Nothing outside this folder names a framework. Ask the backend, never which backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from memfit.records import DeviceMemory, Estimate, Split, StepCosts

StepKind = Literal["train", "test", "predict"]

PureFunction = Callable[[list[Any]], tuple[list[Any], list[Any]]]
"""From tensors to tensors that are differentiated and tensors that are not; the same each time it is called."""


class Backend(Protocol):
    """A framework under Keras. Every method is safe to call before, between and after runs."""

    name: str
    """The value of ``keras.backend.backend()``."""

    def device_memory(self) -> DeviceMemory | None:
        """The accelerator's memory as the framework sees it, or None where training lives in host memory."""

    def release(self) -> None:
        """Gives cached memory back to the system, as far as the framework can."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error, or one that it came from, is the framework's out-of-memory error."""

    def step_bytes(self, model: Any, batch: Any, split: Split | None, kind: StepKind = "train") -> Estimate | None:
        """Bytes that one step takes on top of what is held between steps, from an analysis that runs nothing.

        Args:
            model: A built and compiled Keras model.
            batch: ``(x, y, sample_weight)`` of ``records.TensorSpec`` with the real batch size.
            split: How the batch is split, or None for the plain step; None for what is no training step.
            kind: "train", "test" (a validation step) or "predict" (of ``batch`` the model's inputs alone are read).

        Returns:
            The estimate, or None where this framework cannot analyse the step (the caller then asks a probe).
        """

    def attach(self, model: Any, split: Split | None) -> Callable[[], None]:
        """Puts the micro-batched train step on the model; with None Keras' own, where an analysis has compiled it already.

        Returns:
            A function that takes it off again and leaves the model as it was.
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
