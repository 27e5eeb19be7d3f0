"""What one step takes on PyTorch: the step itself, run on fake tensors, with every live storage counted.

Fake tensors have shapes and no data, so the run takes a fraction of a second to a few seconds and no memory. While it runs,
the variables of the model, the metrics and the optimizer, and the parameters and buffers of its modules, are fakes. Their
own tensors are put aside and put back: never written, never moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from memfit import units
from memfit.backends import keras_losses, keras_optimizer, keras_seam
from memfit.backends.on_torch import workspace
from memfit.backends.on_torch.c_heap import CHeap
from memfit.backends.on_torch.live_storages import Layout, LiveStorages, fake_mode
from memfit.backends.on_torch.memory import mapped_block
from memfit.backends.on_torch.step import MicroBatchedStep
from memfit.backends.on_torch.whereabouts import Whereabouts
from memfit.backends.protocol import StepKind
from memfit.records import Estimate, Split

SOURCE = "fake tensors"
RUNTIME = 12 * units.MIB
"""What a first step leaves in a process on a CPU whatever the model: kernels made at run time, threads, the allocator; 1 to 36
MiB were seen beside the tensors, 15 in the median."""
_FIXED = 14 * units.MIB
_SHARE = 0.05
_SCATTERED = 0.25
"""What the heap's gaps come to beside those of one step on an empty heap, as a share of its furthest reach: what lives on
from step to step scatters. Where the step fits beside them gaps may come to more; else they are given back before it. Half
of it can be left out at first, as can what gaps may come to more."""
_HEAP_SHARE = 0.3
_COMPILED_SHARE = 0.25
"""For torch.compile, which plans buffers by itself while the analysis runs the step as Python does."""

_NOT_ANALYSABLE = (RuntimeError, TypeError, ValueError, NotImplementedError)
"""What code raises that wants the numbers in a fake tensor, or operators without a fake kernel."""


def step_bytes(model: Any, batch: Any, split: Split | None, kind: StepKind = "train") -> Estimate | None:
    """Bytes of one step at its peak beside weights, optimizer state and metrics, without running it.

    Args:
        model: Built and compiled, optimizer, losses and metrics built as well.
        batch: ``(x, y, sample_weight)`` of ``TensorSpec``.
        split: How the batch is split, or None for Keras' own step; None for what is no training step.
        kind: "train", "test" or "predict", which reads x alone.

    Returns:
        The estimate, or None where the step reads numbers out of its tensors (Python control flow on data), uses
        operators that fake tensors do not know, or runs on several devices.
    """
    if keras_seam.is_distributed(model):
        return None
    try:
        layouts = _run(model, batch, split, kind)
    except _NOT_ANALYSABLE:
        return None
    found = [_estimate(model, layout) for layout in layouts]
    return dataclasses.replace(found[0], otherwise=found[1] if len(found) > 1 else None)


def _estimate(model: Any, layout: Layout) -> Estimate:
    share = _COMPILED_SHARE if model.jit_compile else _SHARE
    runtime = RUNTIME if keras.ops.convert_to_tensor(0).device.type == "cpu" else 0
    scattered = int(_SCATTERED * layout.heap_peak)
    sure, gaps = int(share * layout.peak), int(_HEAP_SHARE * layout.heap_peak)
    # A step that fails while it writes weights cannot be undone.
    writes = layout.moment is not None and layout.moment.phase == "update"
    return Estimate(
        layout.peak + scattered + runtime,
        margin=sure + _FIXED + gaps,
        source=SOURCE,
        moment=layout.moment,
        workspace=layout.workspace + scattered,
        spare=0 if writes else _FIXED + gaps + scattered // 2,
    )


def _run(model: Any, batch: Any, split: Split | None, kind: StepKind) -> list[Layout]:
    """One step on fake tensors, as tensors are laid out now and, on a CPU, as with the other setting of ``own_pages``.

    Keras' own step finds the gradients of the step before, as it does from the second on, unless weights are updated in groups
    (``on_torch/around.py``).
    """
    device = keras.ops.convert_to_tensor(0).device
    training = kind == "train"
    where = Whereabouts()
    own = keras_seam.has_own_pages(model)
    layouts = [Layout(CHeap(), mapped_block(pages)) for pages in (own, not own)] if device.type == "cpu" else [Layout()]
    live = LiveStorages(workspace.for_device(device.type), where, layouts)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake_mode())
        stack.enter_context(_mode(model, training=training))
        fakes = stack.enter_context(_swapped(model))
        stack.enter_context(torch.set_grad_enabled(training))
        stack.enter_context(where)
        stack.enter_context(live)
        if training:
            stack.enter_context(_readable(model.optimizer, live, where))
        for fake in fakes:
            live.ignore(fake)
        if training and split is None and not keras_optimizer.is_updating_in_groups(model.optimizer):
            for variable in model.trainable_variables:
                variable.value.grad = torch.empty_like(variable.value)
        # Two parts are as many as a split step ever has at once; the rest of the batch is only held.
        held = (batch[0], None, None) if kind == "predict" else batch
        num_samples = keras_seam.flatten(held)[0].shape[0]
        run = num_samples if split is None else min(num_samples, 2 * split.micro_batch_size)
        data = keras_seam.map_leaves(lambda spec: _tensor(spec, run, device), held)
        rest = keras_seam.map_leaves(lambda spec: _tensor(spec, num_samples - run, device), held)
        outputs = _step(model, split, kind)(keras.utils.pack_x_y_sample_weight(*data))
        del rest, outputs
    return layouts


def _step(model: Any, split: Split | None, kind: StepKind) -> Any:
    if kind == "train" and split is not None:
        return MicroBatchedStep(model, split, compiled=False)
    return {"train": model.train_step, "test": model.test_step, "predict": model.predict_step}[kind]


def _tensor(spec: Any, num_samples: int, device: Any) -> Any:
    dtype = getattr(torch, _DTYPES.get(spec.dtype, spec.dtype))
    return torch.empty((num_samples, *spec.shape[1:]), dtype=dtype, device=device)


_DTYPES = {"uint16": "int32", "uint32": "int64"}  # as Keras feeds them


def _variables(model: Any) -> list[Any]:
    """Every variable that lives between steps, each once."""
    optimizer = getattr(model, "optimizer", None)  # no attribute before `compile`
    slots = [] if optimizer is None else optimizer.variables
    variables = [*model.variables, *model.metrics_variables, *slots]
    return list({id(variable): variable for variable in variables}.values())


def _modules(model: Any) -> list[Any]:
    """Every module, each once: a Keras model does not register its layers as children, but wrapped torch modules have some."""
    layers = [model, *keras_seam.flat_layers(model)]
    return list({id(module): module for layer in layers for module in layer.modules()}.values())


@contextlib.contextmanager
def _mode(model: Any, *, training: bool) -> Iterator[None]:
    """Inside, the modules are in training or in evaluation mode; modes and recorded losses are put back afterwards."""
    modes = {module: module.training for module in _modules(model)}
    with keras_losses.kept_call_losses(model):
        model.train(training)
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextlib.contextmanager
def _readable(optimizer: Any, live: LiveStorages, where: Whereabouts) -> Iterator[None]:
    """Inside, the optimizer can read scalars as numbers: its learning rate, or whether all gradients are finite.

    They scale what it writes and choose between an update and none, so that 1 serves for the memory.
    """

    @contextlib.contextmanager
    def updating() -> Iterator[None]:
        with live.scalars_read_as(1), where.updating():
            yield

    with keras_optimizer.applying_in(optimizer, updating):
        yield


@contextlib.contextmanager
def _swapped(model: Any) -> Iterator[list[Any]]:
    """Inside, variables, parameters and buffers are fakes of the same shapes, which are yielded.

    Random seeds are real copies: they are read as numbers.
    """
    variables = _variables(model)
    seeds = {id(variable.value) for variable in variables if variable.name == "seed_generator_state"}
    tables = [table for module in _modules(model) for table in (module._parameters, module._buffers)]
    registered = [(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]
    held = [*(variable.value for variable in variables), *(tensor for *_, tensor in registered)]
    substitutes = {id(tensor): _copy(tensor) if id(tensor) in seeds else _fake(tensor) for tensor in held}
    grads = [tensor.grad for tensor in held]
    try:
        for table, name, tensor in registered:
            table[name] = substitutes[id(tensor)]
        with keras_seam.replaced_values(variables, [substitutes[id(variable.value)] for variable in variables]):
            yield [substitute for substitute in substitutes.values() if isinstance(substitute, FakeTensor)]
    finally:
        for table, name, tensor in registered:
            table[name] = tensor
        for tensor, grad in zip(held, grads, strict=True):
            tensor.grad = grad  # a step may reach a tensor by another way than its module or variable


def _fake(tensor: Any) -> Any:
    """A fake like the tensor; called inside the fake mode."""
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    if isinstance(tensor, torch.nn.Parameter):
        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


def _copy(tensor: Any) -> Any:
    with unset_fake_temporarily():
        copy = tensor.detach().clone()
        return torch.nn.Parameter(copy, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copy
