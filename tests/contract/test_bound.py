"""The accelerator bounded and shared: what is set where the framework allows it, and what is said where it does not."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import keras
import numpy as np
import pytest

import memfit
from memfit import backends

BACKEND = keras.backend.backend()
MIB = 2**20
ON_GPU = backends.current().device_memory() is not None


@pytest.mark.skipif(ON_GPU, reason="for machines without a GPU")
@pytest.mark.parametrize("limit", [None, 100 * MIB])
def test_without_a_device_nothing_is_set_or_said(limit: int | None) -> None:
    before = dict(os.environ)
    with backends.current().bounded_device(limit) as said:
        assert said is None
    assert dict(os.environ) == before


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's own settings")
def test_torch_is_limited_inside_and_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from memfit.backends.on_torch import memory

    fractions = [0.9]
    monkeypatch.setattr(memory, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (300 * MIB, 400 * MIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: fractions[-1], raising=False)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    with contextlib.suppress(KeyError), backends.current().bounded_device(100 * MIB) as said:
        assert said == "PyTorch's allocator is limited to 100 MiB of the GPU"
        raise KeyError
    with backends.current().bounded_device(None) as said:
        assert said is None
    assert fractions == [0.9, 0.25, 0.9]


class FakeGpu:
    """``tf.config`` of a machine with a GPU, before or after the runtime has started."""

    def __init__(self, patch: pytest.MonkeyPatch, *, started: bool, grows: bool = False) -> None:
        import tensorflow as tf

        self.set: list[Any] = []
        self.started = started
        patch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
        patch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["gpu"])
        patch.setattr(tf.config, "get_logical_device_configuration", lambda device: None)
        patch.setattr(tf.config, "set_logical_device_configuration", lambda device, found: self.change(found[0]))
        patch.setattr(tf.config.experimental, "get_memory_growth", lambda device: grows)
        patch.setattr(tf.config.experimental, "set_memory_growth", lambda device, value: self.change(value))

    def change(self, value: Any) -> None:
        if self.started:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.set.append(value)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own settings")
def test_tensorflow_grows_or_is_limited_before_its_first_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.backends.on_tensorflow.bound import bounded_device

    gpu = FakeGpu(monkeypatch, started=False)
    with bounded_device(None) as said:
        assert said == "TensorFlow takes memory of the GPU as it needs it"
    with bounded_device(300 * MIB) as said:
        assert said is not None
        assert "limited to 300 MiB" in said
    assert gpu.set[0] is True
    assert gpu.set[1].memory_limit == 300
    FakeGpu(monkeypatch, started=False, grows=True)
    with bounded_device(None) as said:
        assert said is None, "what the user has set stays"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own settings")
def test_tensorflow_that_has_started_is_left_and_the_user_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.backends.on_tensorflow.bound import bounded_device

    gpu = FakeGpu(monkeypatch, started=True)
    for limit in (None, MIB):
        with bounded_device(limit) as said:
            assert said is not None
            assert "TF_FORCE_GPU_ALLOW_GROWTH" in said
    assert gpu.set == []


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own settings")
def test_jax_is_set_before_it_starts_and_the_user_told_after(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    from memfit.backends.on_jax import bound

    assert bound._has_started() is True, "keras has made arrays"
    monkeypatch.delenv(bound.PREALLOCATE, raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with bound.bounded_device(None) as said:
        assert said is not None
        assert bound.PREALLOCATE in said
    monkeypatch.setattr(bound, "_has_started", lambda: False)
    monkeypatch.setenv(bound.PREALLOCATE, "")
    monkeypatch.delenv(bound.PREALLOCATE)
    with bound.bounded_device(None) as said:
        assert (said, os.environ[bound.PREALLOCATE]) == (None, "false")
    monkeypatch.setenv(bound.PREALLOCATE, "true")
    with bound.bounded_device(None) as said:
        assert (said, os.environ[bound.PREALLOCATE]) == (None, "true")


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_on_a_gpu_a_batch_that_is_too_large_is_recovered_from() -> None:
    device = backends.current().device_memory()
    assert device is not None
    model = keras.Sequential(
        [keras.Input((1024,)), *(keras.layers.Dense(8192, "relu") for _ in range(4)), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    batch = device.total_bytes // (4 * 8192 * 4)
    x = np.ones((batch, 1024), "float32")
    report = memfit.fit(model, x, x[:, :1], batch_size=batch, epochs=1, verbose=0).memfit
    assert report.plan.micro_batch_size is not None
    after = backends.current().device_memory()
    assert after is not None
    assert after.used_bytes < device.total_bytes // 2
