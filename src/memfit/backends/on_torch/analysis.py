"""What one training step takes on PyTorch: the step itself, run on fake tensors, with every live storage counted.

Fake tensors have shapes and no data, so the run takes a fraction of a second to a few seconds and no memory. While it runs,
the variables of the model, the metrics and the optimizer, and the parameters and buffers of its modules, are fakes. Their
own tensors are put aside and put back: never written, never moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from memfit import units
from memfit.backends import keras_seam
from memfit.backends.on_torch import workspace
from memfit.backends.on_torch.live_storages import LiveStorages, fake_mode
from memfit.backends.on_torch.step import MicroBatchedStep
from memfit.records import Estimate, Split

SOURCE = "fake tensors"
_FIXED = 32 * units.MIB
"""What a first step leaves in the process whatever the model: kernels generated at run time, threads, the allocator."""
_SHARE = 0.05
_COMPILED_SHARE = 0.25
"""For torch.compile, which plans buffers by itself while the analysis runs the step as Python does."""

_NOT_ANALYSABLE = (RuntimeError, TypeError, ValueError, NotImplementedError)
"""What code raises that wants the numbers in a fake tensor, or operators without a fake kernel."""


def step_bytes(model: Any, batch: Any, split: Split | None) -> Estimate | None:
    """Bytes of one training step at its peak beside weights, optimizer state and metrics, without running it.

    Args:
        model: Built and compiled, optimizer, losses and metrics built as well.
        batch: ``(x, y, sample_weight)`` of ``TensorSpec``.
        split: How the batch is split, or None for Keras' own step.

    Returns:
        The estimate, or None where the step reads numbers out of its tensors (Python control flow on data), uses
        operators that fake tensors do not know, or runs on several devices.
    """
    if keras_seam.is_distributed(model):
        return None
    try:
        live = _run(model, batch, split)
    except _NOT_ANALYSABLE:
        return None
    share = _COMPILED_SHARE if model.jit_compile else _SHARE
    return Estimate(live.peak, margin=_FIXED + int(share * live.peak) + live.heap_peak // 2, source=SOURCE)


def _run(model: Any, batch: Any, split: Split | None) -> LiveStorages:
    """One step on fake tensors; the gradients of the step before are there, as they are from the second step on."""
    device = keras.ops.convert_to_tensor(0).device
    live = LiveStorages(workspace.for_device(device.type))
    with fake_mode(), _training(model), _swapped(model) as fakes, live, _readable(model.optimizer, live):
        for fake in fakes:
            live.ignore(fake)
        if split is None:
            for variable in model.trainable_variables:
                variable.value.grad = torch.empty_like(variable.value)
        # Two parts are as many as a split step ever has at once; the rest of the batch is only held.
        num_samples = keras_seam.flatten(batch)[0].shape[0]
        run = num_samples if split is None else min(num_samples, 2 * split.micro_batch_size)
        data = keras_seam.map_leaves(lambda spec: _tensor(spec, run, device), batch)
        rest = keras_seam.map_leaves(lambda spec: _tensor(spec, num_samples - run, device), batch)
        _step(model, split)(keras.utils.pack_x_y_sample_weight(*data))
        del rest
    return live


def _step(model: Any, split: Split | None) -> Any:
    return model.train_step if split is None else MicroBatchedStep(model, split, compiled=False)


def _tensor(spec: Any, num_samples: int, device: Any) -> Any:
    dtype = getattr(torch, _DTYPES.get(spec.dtype, spec.dtype))
    return torch.empty((num_samples, *spec.shape[1:]), dtype=dtype, device=device)


_DTYPES = {"uint16": "int32", "uint32": "int64"}  # as Keras feeds them


def _variables(model: Any) -> list[Any]:
    """Every variable that lives between steps, each once."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return list({id(variable): variable for variable in variables}.values())


def _modules(model: Any) -> list[Any]:
    """Every module, each once: a Keras model does not register its layers as children, but wrapped torch modules have some."""
    layers = [model, *keras_seam.flat_layers(model)]
    return list({id(module): module for layer in layers for module in layer.modules()}.values())


@contextlib.contextmanager
def _training(model: Any) -> Iterator[None]:
    """Inside, the modules are in training mode, and what ``add_loss`` recorded is put back afterwards."""
    modes = {module: module.training for module in _modules(model)}
    with keras_seam.kept_call_losses(model):
        model.train()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextlib.contextmanager
def _readable(optimizer: Any, live: LiveStorages) -> Iterator[None]:
    """Inside, the optimizer can read scalars as numbers: its learning rate, or whether all gradients are finite.

    They scale what it writes and choose between an update and none, so that 1 serves for the memory.
    """
    apply = optimizer.apply

    def readable(*arguments: Any, **keywords: Any) -> Any:
        with live.scalars_read_as(1):
            return apply(*arguments, **keywords)

    keras_seam.set_attribute(optimizer, "apply", readable)
    try:
        yield
    finally:
        keras_seam.remove_attribute(optimizer, "apply")


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
