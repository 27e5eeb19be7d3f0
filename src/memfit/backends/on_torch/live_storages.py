"""How many bytes of tensors are alive while code runs on fake tensors: nothing is computed, nothing is allocated."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memfit.backends.host_allocator import LARGEST_HEAP_BLOCK
from memfit.backends.on_torch.c_heap import CHeap
from memfit.backends.on_torch.whereabouts import Whereabouts
from memfit.records import Moment

_COPY = torch.ops.aten.copy_.default
_READ = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default

Workspace = Callable[[Any, tuple[Any, ...], Any], int]
"""``workspace(operator, arguments, result)``: bytes that the operator's kernel takes by itself while it runs."""


class Layout:
    """What tensors take as one setting of the C library lays them out.

    Args:
        heap: The C library's heap, where tensors lie on it.
        mapped_block: Bytes from which a tensor has pages of its own instead.

    Attributes:
        peak: The highest number of bytes so far, the heap's gaps and the workspace of the operator that ran then included.
        workspace: Of ``peak``, those gaps and that workspace.
        moment: When the peak was, or None where nobody follows the step.
        heap_peak: The furthest that the heap reached.
    """

    def __init__(self, heap: CHeap | None = None, mapped_block: int = LARGEST_HEAP_BLOCK) -> None:
        self.peak = 0
        self.workspace = 0
        self.moment: Moment | None = None
        self.heap_peak = 0
        self._heap = heap
        self._mapped_block = mapped_block
        self._on_heap = 0

    def take(self, size: int) -> Callable[[], None] | None:
        """Places a tensor; returns what takes it off the heap, None where it does not lie there."""
        heap = self._heap
        if heap is None or not 0 < size < self._mapped_block:
            return None
        blocks = heap.take(size)
        self._on_heap += size
        self.heap_peak = max(self.heap_peak, heap.top)

        def give() -> None:
            heap.give(blocks)
            self._on_heap -= size

        return give

    def look(self, live: int, workspace: int, moment: Callable[[], Moment | None]) -> None:
        """Reckons with an operator that has run, beside so many live bytes."""
        workspace += 0 if self._heap is None else self._heap.top - self._on_heap
        if live + workspace > self.peak:
            self.peak, self.workspace, self.moment = live + workspace, workspace, moment()


class LiveStorages(TorchDispatchMode):
    """Counts the storages of fake tensors from their first appearance to their end.

    Enter it inside a ``FakeTensorMode``. Views share a storage and count once. Tensors that are real - random seeds, which
    the code reads as numbers - stay real.

    Args:
        workspace: What an operator's kernel takes by itself.
        where: Follows the step, for ``moment``.
        layouts: Ways to lay tensors out, each told of all of them; without heap where left out.

    Attributes:
        live: Bytes alive now.
        layouts: As passed.
    """

    def __init__(self, workspace: Workspace, where: Whereabouts | None = None, layouts: Sequence[Layout] = ()) -> None:
        super().__init__()
        self.live = 0
        self.layouts = layouts or (Layout(),)
        self._workspace_of = workspace
        self._where = where
        self._scalar: int | None = None
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two thirds of all that comes here
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is _COPY and not isinstance(args[0], FakeTensor):
            return args[0]  # a seed's next value: which one does not matter here
        if func is _READ and self._scalar is not None:
            return _python_type(args[0].dtype)(self._scalar)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor):
                self.count(leaf)
        workspace = self._workspace_of(func, args, result)
        for layout in self.layouts:
            layout.look(self.live, workspace, lambda: None if self._where is None else self._where.moment(func))
        return result

    @contextlib.contextmanager
    def scalars_read_as(self, number: int) -> Iterator[None]:
        """Inside, a fake scalar that is read as a number is this one; elsewhere that is an error."""
        self._scalar = number
        try:
            yield
        finally:
            self._scalar = None

    def count(self, tensor: Any) -> None:
        """Counts a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._storages.get(key)
        if known is not None and known() is storage:
            return
        size = storage.nbytes()
        gives = [give for layout in self.layouts if (give := layout.take(size)) is not None]

        def ended(reference: Any) -> None:
            if self._storages.get(key) is reference:
                del self._storages[key]
            self.live -= size
            for give in gives:
                give()

        self._storages[key] = weakref.ref(storage, ended)
        self.live += size

    def ignore(self, tensor: Any) -> None:
        """Keeps a tensor out of the count: what is held between steps."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = weakref.ref(storage)


def _python_type(dtype: torch.dtype) -> type[bool] | type[int] | type[float]:
    if dtype is torch.bool:
        return bool
    return float if dtype.is_floating_point else int


@contextlib.contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """A mode in which factories make fake tensors, and constants of the model are taken as fakes.

    What it has learned of operators and shapes PyTorch would keep for ever: megabytes for each size of an LSTM's parts.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        FakeTensorMode.cache_clear()
