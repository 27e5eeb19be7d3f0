"""JAX: a Python loop of jitted calls, one for each part, then one that updates; buffers are donated from call to call.

On a CPU the loop costs about nothing and frees a part's activations before the next; ``lax.scan`` ran convolutions five
times slower, and parts unrolled in one program lose the saving to XLA's scheduler (docs: facts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras
import numpy as np

from memfit.backends import host_allocator, keras_losses, keras_seam
from memfit.backends.on_jax import memory
from memfit.backends.shares import Shares
from memfit.records import Remat, Split

_Arrangement = tuple[Split | None, Remat | None, str | None]

_PREPARED = "_memfit_prepared_step"


def attach(model: Any, split: Split | None) -> Callable[[], None]:
    """Puts the micro-batched train step on the model; returns the function that takes it off.

    With None it is Keras' own step, as the analysis compiled it, so that a run need not compile it again.
    """
    if split is None and not compiles_whole(model):
        return lambda: None
    previous = model.train_function
    step = _take_prepared(model, split) or _new_step(model, split)
    keras_seam.set_attribute(model, "train_function", keras_seam.steps_on_iterator(model, step))
    restore_heap = host_allocator.map_large_blocks() if jax.default_backend() == "cpu" else None

    def detach() -> None:
        if restore_heap is not None:
            restore_heap()
        keras_seam.set_attribute(model, "train_function", previous)

    return detach


def fresh_train_function(model: Any) -> Any | None:
    """Keras' own step as a train function; None where Keras would not compile it.

    Keras' own train function would find the trace of the model as it was trained before.
    """
    return keras_seam.steps_on_iterator(model, PlainStep(model)) if compiles_whole(model) else None


def compiles_whole(model: Any) -> bool:
    """Whether Keras would compile the train step as one program for one device."""
    jits = model.jit_compile and not model.run_eagerly and not keras.config.is_nnx_enabled()
    return jits and not keras_seam.is_distributed(model)


def prepared(model: Any, split: Split | None) -> Step | PlainStep:
    """The step that the next ``attach`` with this split and the levers on the model takes: a new one if none is kept.

    Traced and compiled functions are included. It is dropped where the model is compiled again before that. One is kept, as its
    code takes 20 to 100 MiB: where another one was there, a search goes on, and what it has compiled is forgotten.
    """
    if is_prepared(model, split):
        *_, step = vars(model)[_PREPARED]
        return step
    if vars(model).pop(_PREPARED, None) is not None:
        memory.forget_programs()
    step = _new_step(model, split)
    keras_seam.set_attribute(model, _PREPARED, (keras_seam.compile_marks(model), _arrangement(model, split), step))
    return step


def is_prepared(model: Any, split: Split | None) -> bool:
    """Whether ``attach`` with this split and these levers would find a step, traced and maybe compiled."""
    marks, arrangement, _ = vars(model).get(_PREPARED, (None, None, None))
    return arrangement == _arrangement(model, split) and _same(marks, keras_seam.compile_marks(model))


def _take_prepared(model: Any, split: Split | None) -> Step | PlainStep | None:
    """The step that the analysis prepared last, if it is for this arrangement; it is kept no longer."""
    current = is_prepared(model, split)
    *_, step = vars(model).pop(_PREPARED, (None,))
    return step if current else None


def _arrangement(model: Any, split: Split | None) -> _Arrangement:
    return split, keras_seam.remat_of(model), keras_seam.precision_of(model)


def _same(marks: tuple[Any, ...] | None, others: tuple[Any, ...]) -> bool:
    return marks is not None and all(a is b for a, b in zip(marks, others, strict=True))


def _new_step(model: Any, split: Split | None) -> Step | PlainStep:
    return PlainStep(model) if split is None else Step(model, split)


def _wait(results: Any) -> None:
    """On a CPU, waits for a step.

    JAX runs up to 32 steps behind the Python loop, and each waits with its batch in memory; an allocation that fails there
    is raised long after its step. On an accelerator the queue is what keeps it busy, and holds no more than a batch ahead.
    """
    if jax.default_backend() == "cpu":
        jax.block_until_ready(results)


def gradients(model: Any, batch: Any, split: Split | None) -> tuple[float, list[Any]]:
    """Loss and gradients of one batch in training mode; the caller keeps and restores the model's state.

    It is compiled: op by op, JAX would keep hundreds of MiB of small programs. What was compiled before is given back, as this
    is where little room is left: the programs of whole and parts are never there together.
    """
    state = _values(model)
    trainable, others, optimizer, metrics = state
    kept = keras_seam.kept_programs(model)
    if split is not None or "gradient" not in kept:
        kept.clear()
        vars(model).pop(_PREPARED, None)
        memory.forget_programs()
    if split is None:

        def loss_of(trainable: Any, others: Any, batch: Any) -> Any:
            loss, (_, _, others, _) = model.compute_loss_and_updates(
                trainable, others, metrics, *batch, training=True, optimizer_variables=optimizer
            )
            return loss, others

        step = kept.setdefault("gradient", _Quick(_compiled(model, jax.value_and_grad(loss_of, has_aux=True))))
        (total, others), grads = step(trainable, others, batch)
        total = total / model.optimizer.scale_loss(1.0)
    else:
        total, others, grads = Step(model, split).gradients(state, batch)
    scale = float(model.optimizer.scale_loss(1.0))
    results = float(total), [np.asarray(gradient) / scale for gradient in grads]
    for variable, value in zip(model.non_trainable_variables, others, strict=True):
        variable.assign(value)
    return results


def _compiled(model: Any, function: Callable[..., Any], **options: Any) -> Any:
    """The function compiled as the model's own step would be: jitted, or as it is."""
    return jax.jit(function, **options) if model.jit_compile and not model.run_eagerly else function


def quick_options() -> dict[str, Any] | None:
    """How to compile what is analysed, or runs on a tiny batch: on a CPU without optimizing the code, in half the time.

    The buffers are the same to the byte (benchmarks/compiling.py).
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


class _Quick:
    """A function that is compiled quickly for the shapes that it is called with, where it is jitted.

    What the compiler took is given back before the call takes its own.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._programs: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        if not hasattr(self._function, "lower"):
            return self._function(*arguments)
        shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves(arguments))
        if shapes not in self._programs:
            lowered = self._function.lower(*arguments)
            self._programs[shapes] = lowered.compile(compiler_options=quick_options())
            host_allocator.trim()
        return self._programs[shapes](*arguments)


def _values(model: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    optimizer = model.optimizer.variables
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer, model.metrics_variables)
    return tuple([variable.value for variable in group] for group in groups)  # type: ignore[return-value]


class PlainStep:
    """Keras' own train step, compiled as Keras compiles it: ``step(state, data) -> (logs, state)``.

    Attributes:
        is_compiled: Whether an analysis has compiled it as it is to run.
    """

    is_compiled = False

    def __init__(self, model: Any) -> None:
        # A function of its own: jitting the bound method again, as Keras does, would find this one's trace.
        self.jitted = jax.jit(lambda state, data: model.train_step(state, data), donate_argnums=0)

    def __call__(self, state: Any, data: Any) -> tuple[Any, Any]:
        logs, state = self.jitted(state, data)
        _wait(logs)
        return logs, state


class Step:
    """The micro-batched train step: ``step(state, data) -> (logs, state)``, as Keras' JAX trainer calls it.

    Attributes:
        is_compiled: Whether an analysis has compiled it as it is to run.
    """

    is_compiled = False

    def __init__(self, model: Any, split: Split) -> None:
        self._model = model
        self._size = split.micro_batch_size
        self._shares = Shares(model, split)
        self._own_loss = keras_seam.overrides(model, "compute_loss")
        self._counted: dict[bool, bool] = {}
        self.jitted_part = _compiled(model, self.part, donate_argnums=(1, 2, 4))
        self.jitted_update = _compiled(model, self.update, donate_argnums=(0, 2, 3))
        self.jitted_counts = _compiled(model, self.counts)

    @property
    def may_count(self) -> bool:
        """Whether ``counts`` may have to run before the first part."""
        return self._shares.may_count

    def __call__(self, state: Any, data: Any) -> tuple[Any, Any]:
        trainable, others, optimizer, metrics = state
        batch = keras.utils.unpack_x_y_sample_weight(data)
        sums, others, metrics, logs = self._accumulate((trainable, others, optimizer, metrics), batch, donate=True)
        update = self.jitted_update(trainable, others, optimizer, metrics, sums, logs, _num_samples(batch))
        trainable, others, optimizer, metrics, logs = update
        _wait(logs)
        return logs, (trainable, others, optimizer, metrics)

    def gradients(self, state: Any, batch: Any) -> tuple[Any, list[Any], list[Any]]:
        """Loss, non-trainable values after it, and (loss-scaled) gradients of a batch; nothing is donated."""
        (total, _, grads), others, *_ = self._accumulate(state, batch, donate=False)
        return total, others, grads

    def _accumulate(self, state: Any, batch: Any, *, donate: bool) -> tuple[Any, Any, Any, Any]:
        trainable, others, optimizer, metrics = state
        num_samples = _num_samples(batch)
        counts = self._total_counts(trainable, others, batch)
        part = self.jitted_part if donate else _Quick(_compiled(self._model, lambda *arguments: self.part(*arguments)))
        sums = self.zeros(trainable)
        logs: Any = {}
        for piece in _parts(batch, num_samples, self._size):
            fraction = np.float32(_num_samples(piece) / num_samples)
            arguments = (trainable, others, metrics, optimizer, sums, piece, fraction, counts)
            others, metrics, sums, logs = part(*arguments)
        return sums, others, metrics, logs

    def part(
        self,
        trainable: Any,
        others: Any,
        metrics: Any,
        optimizer: Any,
        sums: Any,
        part: Any,
        fraction: Any,
        counts: Any,
    ) -> tuple[Any, Any, Any, Any]:
        """Adds one part's loss and gradients to ``sums``, updates state and metrics."""
        model = self._model
        x, y, sample_weight = part

        def loss_of(trainable: Any) -> Any:
            y_pred, new_others, losses = model.stateless_call(
                trainable, others, x, return_losses=True, **keras_seam.forward_arguments(model, training=True)
            )
            mapping = [
                *zip(model.trainable_variables, trainable, strict=True),
                *zip(model.non_trainable_variables, new_others, strict=True),
                *zip(model.metrics_variables, metrics, strict=True),
                *zip(model.optimizer.variables, optimizer, strict=True),
            ]
            with keras.StatelessScope(mapping) as scope, keras_losses.overridden_losses(model, losses):
                share = self._shares.share(part, y_pred, losses=losses, fraction=fraction, counts=counts)
                scaled = model.optimizer.scale_loss(share.total)
            new_others = [scope.get_current_value(variable) for variable in model.non_trainable_variables]
            new_metrics = [scope.get_current_value(variable) for variable in model.metrics_variables]
            return scaled, (share, y_pred, new_others, new_metrics)

        (_, (share, y_pred, new_others, new_metrics)), grads = jax.value_and_grad(_flat(loss_of), has_aux=True)(
            trainable
        )
        with keras.StatelessScope(list(zip(model.metrics_variables, new_metrics, strict=True))) as scope:
            logs = model.compute_metrics(x, y, y_pred, sample_weight)
        new_metrics = [scope.get_current_value(variable) for variable in model.metrics_variables]
        total, outputs, accumulated = sums
        share_total, share_outputs = share
        outputs = [a + b for a, b in zip(outputs, share_outputs, strict=True)]
        accumulated = [a + gradient for a, gradient in zip(accumulated, grads, strict=True)]
        return new_others, new_metrics, (total + share_total, outputs, accumulated), logs

    def update(
        self, trainable: Any, others: Any, optimizer: Any, metrics: Any, sums: Any, logs: Any, num_samples: Any
    ) -> tuple[Any, Any, Any, Any, Any]:
        """One optimizer update from the summed gradients, the loss metrics, and the batch's logs."""
        model = self._model
        total, outputs, grads = sums
        trainable, optimizer = model.optimizer.stateless_apply(optimizer, grads, trainable)
        with keras.StatelessScope(list(zip(model.metrics_variables, metrics, strict=True))) as scope:
            self._shares.finish(total, outputs, num_samples, num_samples)
            logs = {**logs, **model.get_metrics_result()}
        metrics = [scope.get_current_value(variable) for variable in model.metrics_variables]
        return trainable, others, optimizer, metrics, logs

    def counts(self, trainable: Any, others: Any, part: Any) -> list[Any]:
        """The part's data-dependent denominators; XLA drops all else of the forward pass."""
        model = self._model
        x, y, sample_weight = part
        arguments = keras_seam.forward_arguments(model, training=False)
        y_pred, _ = model.stateless_call(trainable, others, x, **arguments)
        with keras.StatelessScope():
            return self._shares.counts(x, y, y_pred, sample_weight)

    def _total_counts(self, trainable: Any, others: Any, batch: Any) -> list[Any] | None:
        weighted = batch[2] is not None
        if not self._counted.setdefault(weighted, self._shares.may_count):
            return None
        totals: list[Any] | None = None
        for part in _parts(batch, _num_samples(batch), self._size):
            counts = self.jitted_counts(trainable, others, part)
            if all(count is None for count in counts):
                self._counted[weighted] = False
                return None
            added = [None if a is None else a + b for a, b in zip(totals or counts, counts, strict=True)]
            totals = counts if totals is None else added
        return totals

    def zeros(self, trainable: Any) -> tuple[Any, list[Any], list[Any]]:
        """The sums before the first part: of the losses, and of each gradient."""
        num_outputs = 0 if self._own_loss else len(keras_losses.compiled_losses(self._model))
        zeros = [jax.numpy.zeros_like(value) for value in trainable]
        dtype = keras.config.floatx()
        return jax.numpy.zeros((), dtype), [jax.numpy.zeros((), dtype) for _ in range(num_outputs)], zeros


def _flat(loss_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The loss function with its Share record as a tuple, which JAX can return."""

    def call(trainable: Any) -> Any:
        loss, (share, *rest) = loss_of(trainable)
        return loss, ((share.total, share.outputs), *rest)

    return call


def _num_samples(batch: Any) -> int:
    return int(keras_seam.flatten(batch)[0].shape[0])


def _parts(batch: Any, num_samples: int, size: int) -> Iterator[Any]:
    for start in range(0, num_samples, size):
        yield keras_seam.rows(batch, slice(start, start + size))
