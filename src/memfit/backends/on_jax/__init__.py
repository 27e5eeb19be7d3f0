"""The JAX backend."""

from types import SimpleNamespace

from memfit.backends.on_jax import analysis, memory, step

backend = SimpleNamespace(attach=step.attach, gradients=step.gradients, step_bytes=analysis.step_bytes, release=memory.release)
