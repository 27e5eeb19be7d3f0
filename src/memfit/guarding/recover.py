"""A train step that runs out of memory is undone, the plan made smaller, and the same batch goes through again.

It happens inside the step, as Keras' loop sees it: epoch, order of the data, callbacks and schedules go on undisturbed. It
needs a failure that is an exception and leaves the process usable: on an accelerator, and in host memory where the
framework says so (``Backend.survives_on_host``); there a bound makes allocations fail before the kernel kills, and a step
that failed for gaps of the heap goes through once more without them before the plan is made smaller. Elsewhere the kernel
kills, or allocators are not to be trusted after it.

What undoes the step: moving averages, seeds and metrics are copied before each. PyTorch tells of each weight whether it was
written since; mostly none was, because memory is short in the backward pass. Elsewhere weights and optimizer state are
copied to the host before the first step with a batch of new shapes: those are the steps that may not fit. A step of shapes
that have gone through before can fail all the same (a neighbour on the device, fragmentation). Then JAX tells whether the
state was given away. Where the state is lost, the last copy is put back and training ends with an error that says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from memfit.backends import error_chain, keras_seam
from memfit.backends.protocol import Backend
from memfit.budgeting import host
from memfit.errors import OutOfMemoryError
from memfit.units import MIB

if TYPE_CHECKING:
    from memfit.backends.around import Around, Kept, Run
    from memfit.backends.host_bound import HostBound

_SHAPES_REMEMBERED = 256

_KERNELS_OWN = 8 * MIB
"""Of what is left in a control group, what the kernel charges beside a process' pages as it grows: tables of pages, files."""


class Recovery:
    """Called in the train step's place.

    Args:
        backend: The current backend.
        shrink: Called with what was said of a failure; puts a strictly smaller plan on the model, or raises.
        log: Called with the kind and the sentence of an event.
        bound: What makes a step fail before the kernel ends the process, where there is such a thing.

    Attributes:
        around: What holds the step; set before the first.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        shrink: Callable[[str], None],
        log: Callable[[str, str], None],
        bound: HostBound | None = None,
    ) -> None:
        self._backend = backend
        self._shrink = shrink
        self._bound = bound
        self._log = log
        self._seen: set[Any] = set()
        self._last_copy: Kept | None = None
        self._steps_since_copy = 0
        self.around: Around | None = None

    def __call__(self, run: Run, batch: Any) -> Any:
        assert self.around is not None
        shapes = self.around.signature(batch)
        while True:
            kept = self.around.keep(whole=shapes not in self._seen and not self.around.tells_writes)
            if kept.whole:
                self._last_copy, self._steps_since_copy = kept, 0
            logs, failure = self._tried(run, batch)
            if failure is None:
                self._went_through(shapes)
                return logs
            self._recover(kept, failure)

    def _tried(self, run: Run, batch: Any) -> tuple[Any, str | None]:
        """The step's logs, or what was said as memory ran out: by then the attempt's tensors are let go."""
        try:
            with applied(self._bound):
                return run(batch), None
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                raise
            failure = f"{type(error).__name__}: {str(error)[:300]}"
            error_chain.drop_frames(error)
        return None, failure

    def _recover(self, kept: Kept, failure: str) -> None:
        self._log("out of memory", failure)
        self._backend.release()
        if not kept.restore():
            raise OutOfMemoryError(
                f"Training ran out of memory as weights were being written ({failure}). {self._salvaged()} Pass a smaller "
                "`budget`, and start again from your last checkpoint."
            )
        self._seen.clear()
        if self._bound is not None and self._bound.keep_gaps_closed():
            self._log("retry", "the same plan, each of whose steps begins without gaps on the heap from now on")
            return
        if self._bound is not None and self._bound.finds_room():
            self._log("retry", "the same plan, for which there is more room than address space told")
            return
        self._shrink(failure)
        if self._bound is not None:
            self._bound.start_over()

    def _salvaged(self) -> str:
        """What is done about a state that is lost, as a sentence."""
        if self._last_copy is None:
            return "Some weights have this step's update and some have not."
        self._last_copy.restore()
        return f"The model is as it was {self._steps_since_copy} steps before."

    def _went_through(self, shapes: Any) -> None:
        self._steps_since_copy += 1
        if len(self._seen) < _SHAPES_REMEMBERED:
            self._seen.add(shapes)


def applied(bound: HostBound | None) -> AbstractContextManager[None]:
    """Inside, the bound is in force, where there is one."""
    return contextlib.nullcontext() if bound is None else bound.applied()


@contextlib.contextmanager
def let_go(bound: HostBound | None) -> Iterator[None]:
    """Afterwards, the C heap is as it would be without the bound."""
    try:
        yield
    finally:
        if bound is not None:
            bound.let_go()


def bound_on_host(backend: Backend, model: Any) -> HostBound | None:
    """What makes a step fail that would take this process above what the machine allows now, whatever the budget is.

    Returns:
        The bound; None where a failure in host memory ends the process anyway, or the system has no such limit.
    """
    if not backend.bounds_host:
        return None
    bound = backend.host_bound(host.host_ceiling().bytes - _KERNELS_OWN)
    bound.is_step_compiled = keras_seam.is_jitted(model)
    return bound


def survives(backend: Backend) -> bool:
    """Whether running out of memory is an exception after which this process can go on."""
    return backend.survives_on_host or backend.device_memory() is not None
