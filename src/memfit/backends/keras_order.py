"""The batch that ``fit`` draws to build a model, and the order in which Keras' queue of a ``PyDataset`` hands batches out.

On JAX and PyTorch ``fit`` draws one batch before its first epoch where model, loss or metrics are not built yet. Most data
starts anew after that, with random numbers drawn or a stream moved on; Keras' queue of a ``PyDataset`` with workers keeps
the batches that were made behind the one drawn, and hands them out first. memfit builds the model ahead, to plan, and so has
``fit`` draw its batch all the same.

The rule of ``keras_seam`` holds here too: each private name has a test in ``tests/contract/test_keras_seam.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.trainers.data_adapters import py_dataset_adapter

from memfit.backends import keras_seam

_OWED = "_memfit_owed_look"


@dataclasses.dataclass(frozen=True)
class Look:
    """A batch that ``fit`` is to draw before its first epoch.

    Attributes:
        state: Of Python's random generator when it is drawn.
        build_draws: Whether building the model has drawn from that generator: it is then as it was after that.
    """

    state: Any
    build_draws: bool = False


def owe_look(model: Any, look: Look | None) -> None:
    """Notes whether memfit's next ``fit`` of the model is to draw a batch first, whatever is built then."""
    keras_seam.set_attribute(model, _OWED, (look, vars(model).get("history")))


def owed_look(model: Any) -> Look | None:
    """The batch that the next ``fit`` of a compiled model draws first; None where it draws none."""
    if is_owed_known(model):
        look: Look | None = vars(model)[_OWED][0]
        return look
    return Look(random.getstate()) if draws_itself(model) else None


def is_owed_known(model: Any) -> bool:
    """Whether ``owe_look`` was called since the model was trained last."""
    return _OWED in vars(model) and vars(model)[_OWED][1] is vars(model).get("history")


def draws_itself(model: Any) -> bool:
    """Whether Keras' ``fit`` would draw a batch now, as something is not built yet."""
    if hasattr(model, "_maybe_symbolic_build"):  # this trainer builds while it traces the first step
        return False
    parts = (model._compile_metrics, model._compile_loss)
    return not (keras_seam.has_weights(model) and all(part is None or part.built for part in parts))


def draws_first(model: Any, look: Look | None) -> bool:
    """Whether ``fit`` draws a batch before its first epoch, of itself or because it is to."""
    return look is not None or draws_itself(model)


def pass_over_look(arguments: dict[str, Any]) -> None:
    """Draws from Python's generator what drawing the batch will: a build that draws its seeds there comes after that."""
    x = arguments.get("x")
    if isinstance(x, keras.utils.PyDataset) and arguments.get("shuffle", True) and x.num_batches is not None:
        random.shuffle(list(range(x.num_batches)))


@contextlib.contextmanager
def looking_first(model: Any, look: Look | None) -> Iterator[None]:
    """Inside, ``fit`` draws the batch that it would have drawn if the model were not built.

    Args:
        model: A compiled and built model.
        look: None draws none.
    """
    kept = vars(model).pop(_OWED, None)
    if look is None:
        yield
        return
    was_drawn = False

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        nonlocal was_drawn
        if not was_drawn and iterator is not None:
            was_drawn, after = True, random.getstate()
            random.setstate(look.state)
            for _, _, batch_or_iterator in iterator:
                if not isinstance(batch_or_iterator, (list, tuple)):
                    next(batch_or_iterator)
                break
            if look.build_draws:
                random.setstate(after)
        type(model)._symbolic_build(model, iterator=iterator, data_batch=data_batch)

    keras_seam.set_attribute(model, "_symbolic_build", build)
    try:
        yield
    finally:
        keras_seam.remove_attribute(model, "_symbolic_build")
        if not was_drawn and kept is not None:
            keras_seam.set_attribute(model, _OWED, kept)


def is_filled_ahead(dataset: Any) -> bool:
    """Whether Keras fills a queue for a ``PyDataset``: with one thread alone it makes each batch as it is asked for."""
    return bool(dataset.workers > 1 or (dataset.workers > 0 and dataset.use_multiprocessing))


def is_carried_over(data: Any, steps_per_epoch: Any, *, looks: bool) -> bool:
    """Whether Keras' queue takes batches from one epoch into the next, so that an epoch's order depends on those before.

    Args:
        data: The ``x`` of ``fit``.
        steps_per_epoch: Of ``fit``.
        looks: Whether ``fit`` draws a batch first.
    """
    has_queue = isinstance(data, keras.utils.PyDataset) and is_filled_ahead(data)
    return has_queue and (looks or bool(steps_per_epoch))


def changes_between_epochs(dataset: Any) -> bool:
    """Whether the user's ``PyDataset`` has a hook at the ends of epochs, so that a batch made before is not one made after."""
    plain = keras.utils.PyDataset
    return any(getattr(type(dataset), name) is not getattr(plain, name) for name in ("on_epoch_begin", "on_epoch_end"))


class QueuedDataset(py_dataset_adapter.PyDatasetAdapter):
    """A ``PyDataset`` for ``fit`` with a queue of another size than its own, and the order that its own gives.

    Keras' queue keeps batches that were made and not asked for when an epoch ends, and hands them out first in the next: an
    epoch of a model that ``fit`` has built itself is 1, 2, ..., n-1, 0 where the queue holds them all. What it would keep is
    here made again instead of being held. It is told as if the queue were always full, as it is where a batch takes
    longer to make than to ask for.

    Args:
        dataset: The user's, of a known number of batches; stays as it is.
        workers: Batches being made at once.
        waiting: Batches made before they are asked for, at most.
        class_weight: As for ``fit``.
        shuffle: As for ``fit``.
    """

    def __init__(self, dataset: Any, *, workers: int, waiting: int, class_weight: Any, shuffle: bool) -> None:
        super().__init__(dataset, class_weight=class_weight, shuffle=shuffle)
        self.enqueuer = _Queue(
            dataset,
            workers=workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=waiting,
            shuffle=shuffle,
        )

    def hold_less(self) -> int:
        """From here on one batch waits and no more; gives how many fewer."""
        queue = self.enqueuer.future_queue
        before = queue.maxsize if queue.maxsize > 0 else int(self.num_batches)
        queue.maxsize = 1
        return max(0, before - 1)


class _Queue(py_dataset_adapter.OrderedEnqueuer):
    """Keras' queue, which remembers the numbers of the batches that it would have kept instead of the batches."""

    _carried: tuple[int, ...] = ()
    _order: tuple[int, ...] = ()
    _taken = 0

    @property
    def indices(self) -> Any:
        """The numbers of the batches to be made."""
        return self._indices

    @indices.setter
    def indices(self, fresh: Any) -> None:
        """A pass begins: first comes what was left of the one before."""
        self._order, self._taken = tuple(fresh), 0
        self._indices = itertools.chain(self._carried, self._order)

    def get(self) -> Iterator[Any]:
        for batch in super().get():
            self._taken += 1
            yield batch

    def stop(self, drain_queue_and_join: bool = True) -> None:
        was_running = self.is_running()
        super().stop(drain_queue_and_join)
        if not was_running or not drain_queue_and_join:
            return
        self.ready_queue.queue.clear()
        own = self.py_dataset.max_queue_size
        begun = max(0, self._taken - len(self._carried))
        ahead = self._order[begun : begun + own + 1] if own > 0 else self._order[begun:]
        self._carried = (*self._carried[self._taken :], *ahead)
