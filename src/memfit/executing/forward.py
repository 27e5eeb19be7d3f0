"""A step of ``predict`` or ``evaluate`` on what fits of its batch, and its outputs kept once instead of twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from memfit.backends import error_chain, keras_seam
from memfit.backends.around import Run
from memfit.backends.host_bound import HostBound
from memfit.backends.protocol import Backend
from memfit.errors import ArgumentError, OutOfMemoryError
from memfit.executing.results import Rows
from memfit.guarding.recover import applied, survives


class ForwardStep:
    """Called in a step's place: in parts where the batch is larger than fits, once more in smaller parts where memory runs out.

    Args:
        model: The model.
        backend: The current backend.
        most: Samples that go through together at most; None for whole batches.
        collected: What takes the outputs of ``predict``, and gives Keras something to keep in their place; None for
            ``evaluate``, whose steps only move metrics.
        bound: What makes a step fail before the kernel ends the process, where there is such a thing.

    Attributes:
        failures: What was said of each failure that was met.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        *,
        most: int | None,
        collected: Collected | None,
        bound: HostBound | None = None,
    ) -> None:
        self._model = model
        self._backend = backend
        self._most = most
        self._collected = collected
        self._bound = bound
        self.failures: list[str] = []

    def __call__(self, run: Run, batch: Any) -> Any:
        num_samples = _num_samples(batch)
        start, results = 0, None
        while True:
            size = num_samples if self._most is None else min(self._most, num_samples - start)
            whole = size >= num_samples
            part = batch if whole else keras_seam.rows(batch, slice(start, start + size))
            results, failure = self._tried(run, part)
            if failure is None:
                start += size
                if start >= num_samples:
                    return results
                continue
            self._shrink(size, failure)

    def _tried(self, run: Run, part: Any) -> tuple[Any, str | None]:
        """The step's results, or what was said as memory ran out; by then the failed step's tensors are gone."""
        metrics = self._metrics_before()
        try:
            with applied(self._bound):
                results = run(part)
            arrays = self._read(results)
        except Exception as error:
            if not self._backend.is_out_of_memory(error) or not survives(self._backend):
                raise
            failure = f"{type(error).__name__}: {str(error)[:300]}"
            error_chain.drop_frames(error)
        else:
            # Outside of the attempt: rows that are kept must not come a second time.
            return results if self._collected is None else self._collected(results, arrays), None
        for variable, value in metrics:
            variable.assign(value)
        self._backend.release()
        return None, failure

    def _read(self, results: Any) -> list[Any]:
        """The outputs as arrays. Metrics are read on an accelerator, so that the failure of an asynchronous step shows here."""
        leaves = keras.tree.flatten(results)
        if self._collected is None and self._backend.device_memory() is None:
            return []
        return [keras.ops.convert_to_numpy(leaf) for leaf in leaves] if all(map(_is_dense, leaves)) else []

    def _metrics_before(self) -> list[tuple[Any, Any]]:
        if self._collected is not None or not survives(self._backend) or keras_seam.framework() == "jax":
            return []
        return [(variable, keras.ops.copy(variable.value)) for variable in self._model.metrics_variables]

    def _shrink(self, size: int, failure: str) -> None:
        if size <= 1 and self._bound is not None:
            self._bound.let_go()
            self._bound = None  # there may be more room than is known
            self.failures.append(failure)
            return
        if size <= 1:
            raise OutOfMemoryError(
                f"Not even one sample at a time fits ({failure}). Pass a smaller model or shorter samples."
            )
        self.failures.append(failure)
        self._most = size // 2
        if self._bound is not None:
            self._bound.start_over()


class Collected:
    """The outputs of ``predict``, one ``Rows`` for each, in the structure of the model's outputs.

    Args:
        make: Makes the ``Rows`` of an output from its number and its name.
    """

    def __init__(self, make: Callable[[int, str], Rows]) -> None:
        self._make = make
        self._rows: list[Rows] = []
        self._passed_on = False
        self.last: Any = None

    def __call__(self, outputs: Any, arrays: list[Any]) -> Any:
        """Keeps one batch's outputs; what it returns is of no rows, and Keras may keep that.

        Args:
            outputs: As the step gave them.
            arrays: Their leaves; empty where they are not dense.
        """
        if self._passed_on or not arrays:
            return self._left_to_keras(outputs)
        self.last = outputs
        if not self._rows:
            self._rows = [self._make(number, _name(path)) for number, path in enumerate(_paths(outputs))]
        for rows, array in zip(self._rows, arrays, strict=True):
            rows.append(array)
        return keras.tree.pack_sequence_as(outputs, [array[:0].copy() for array in arrays])

    def finish(self, from_keras: Any) -> Any:
        """The predictions in the structure in which ``model.predict`` returns them.

        Args:
            from_keras: What it returned, which is right where the outputs were left to it.
        """
        if self._passed_on:
            return from_keras
        return keras.tree.pack_sequence_as(from_keras, [rows.finish() for rows in self._rows])

    def abandon(self) -> None:
        """Leaves no half-written file."""
        for rows in self._rows:
            rows.abandon()

    def _left_to_keras(self, outputs: Any) -> Any:
        """Ragged and sparse outputs have no rows of one length: Keras joins them itself."""
        if self._rows:
            raise ArgumentError("Some batches of predictions are dense and some are not. Make them all of one kind.")
        self._passed_on = True
        return outputs

    @property
    def passed_on(self) -> bool:
        """Whether the outputs were left to Keras."""
        return self._passed_on


class OutputsInLogs(keras.callbacks.Callback):
    """The first of the callbacks: puts a batch's real outputs in the logs that the others read."""

    def __init__(self, collected: Collected) -> None:
        super().__init__()
        self._collected = collected

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        outputs = self._collected.last
        if logs is None or outputs is None or self._collected.passed_on:
            return
        logs.update(outputs if isinstance(outputs, dict) else {"outputs": outputs})


def _num_samples(batch: Any) -> int:
    """Samples of a batch; 1 where its leaves cannot be cut."""
    leaves = [leaf for leaf in keras_seam.flatten(batch) if getattr(leaf, "shape", None) is not None]
    cut = leaves and all(len(leaf.shape) and hasattr(leaf, "__getitem__") for leaf in leaves)
    return int(leaves[0].shape[0]) if cut else 1


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, (int, float)) or (hasattr(leaf, "__array__") and not hasattr(leaf, "row_splits"))


def _paths(structure: Any) -> list[tuple[Any, ...]]:
    return [path for path, _ in keras.tree.flatten_with_path(structure)]


def _name(path: tuple[Any, ...]) -> str:
    return "_".join(map(str, path)) or "0"
