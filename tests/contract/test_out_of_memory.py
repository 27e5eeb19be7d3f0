"""What is an out-of-memory error, and what only looks like one, on the backend of this process."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from memfit import backends

NAME = keras.backend.backend()


def tensorflow_errors() -> tuple[list[Any], list[Any]]:
    import tensorflow as tf

    exhausted = tf.errors.ResourceExhaustedError
    real = [
        exhausted(None, None, "OOM when allocating tensor with shape[256,148,148,32] and type float on device:GPU:0"),
        exhausted(None, None, "failed to allocate memory [Op:AddV2]"),
        exhausted(None, None, "Out of memory while trying to allocate 1073741824 bytes."),
        tf.errors.InternalError(None, None, "Failed copying input tensor: Dst tensor is not initialized."),
    ]
    alike = [
        exhausted(None, None, "Received message larger than max (5000000 vs. 4194304)"),
        exhausted(None, None, "/data/train.tfrecord; Too many open files"),
        tf.errors.InvalidArgumentError(None, None, "Incompatible shapes: [32,10] vs. [32]"),
    ]
    return real, alike


def jax_errors() -> tuple[list[Any], list[Any]]:
    import jax

    error = jax.errors.JaxRuntimeError
    real = [
        error("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
        error("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."),
        error("INTERNAL: Failed to allocate 25165824 bytes for new constant: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        error("INTERNAL: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes."),
    ]
    alike = [
        error("INVALID_ARGUMENT: Executable expected shape f32[32] but got f32[16]"),
        error("RESOURCE_EXHAUSTED: Received message larger than max (5000000 vs. 4194304)"),
        error("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.5M of 16.0M vmem."),
        error(
            "RESOURCE_EXHAUSTED: shared memory size limit exceeded, requested 264192, available: 232448: out of memory"
        ),
        RuntimeError("the label of row 3 is: RESOURCE_EXHAUSTED: Out of memory"),
    ]
    return real, alike


def torch_errors() -> tuple[list[Any], list[Any]]:
    import torch

    real = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.12 GB, max allowed: 9.07 GB)."
        ),
        RuntimeError("could not create a primitive"),
        RuntimeError(
            "Exception encountered when calling Conv2D.call().\n\n\x1b[1mcould not execute a primitive\x1b[0m"
        ),
    ]
    alike = [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (32x5 and 6x2)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
        ),
        RuntimeError(
            "out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block sizes may help"
        ),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    ]
    return real, alike


REAL, ALIKE = {"tensorflow": tensorflow_errors, "jax": jax_errors, "torch": torch_errors}[NAME]()
REAL.append(MemoryError())
ALIKE += [ValueError("a text that quotes: CUDA out of memory"), KeyboardInterrupt(), StopIteration()]


@pytest.mark.parametrize("error", REAL, ids=lambda error: str(error)[:40])
def test_memory_is_recognised_also_behind_another_error(error: BaseException) -> None:
    backend = backends.current()
    assert backend.is_out_of_memory(error)
    wrapped = RuntimeError("Exception encountered when calling Sequential.call().")
    wrapped.__cause__ = error
    assert backend.is_out_of_memory(wrapped)


@pytest.mark.parametrize("error", REAL, ids=lambda error: str(error)[:40])
def test_memory_is_recognised_where_keras_tells_of_the_layer(error: Exception) -> None:
    class Failing(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            raise error

    with pytest.raises(Exception) as caught:
        Failing()(keras.ops.ones((2, 2)))
    assert backends.current().is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", ALIKE, ids=lambda error: str(error)[:40])
def test_what_only_looks_alike_is_not(error: BaseException) -> None:
    assert not backends.current().is_out_of_memory(error)
