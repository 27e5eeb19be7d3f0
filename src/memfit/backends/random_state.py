"""The global random generators: looking at a first batch must not move them, and a run that goes on needs them as they were."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from memfit.backends import keras_saving


@contextlib.contextmanager
def preserved(*, python: bool = True, owner: Any = None) -> Iterator[None]:
    """Inside, draws from the global generators of Python, numpy and PyTorch are undone at the end.

    Args:
        python: Whether those of Python are; building a model draws its seeds there, which stay drawn.
        owner: An object, such as a data set, whose own generators are put back too.
    """
    own = [(generator, _state(generator)) for generator in getattr(owner, "__dict__", {}).values()]
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = None if torch is None else torch.random.get_rng_state()
    try:
        yield
    finally:
        if python:
            random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None and torch_state is not None:
            torch.random.set_rng_state(torch_state)
        for generator, state in own:
            if state is not None:
                _set_state(generator, state)


def _state(generator: Any) -> Any | None:
    """Of a generator of numpy, Python or PyTorch; None of anything else."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate()
    torch = sys.modules.get("torch")
    if isinstance(generator, np.random.RandomState) or (torch and isinstance(generator, torch.Generator)):
        return generator.get_state()
    return None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def captured() -> dict[str, Any]:
    """The state of the global generators of Python, numpy, Keras, PyTorch and TensorFlow, in plain values."""
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "keras": None, "torch": None}
    generator = keras_saving.global_seed_generator()
    if generator is not None:
        state["keras"] = np.array(keras.ops.convert_to_numpy(generator.state.value))
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch"] = torch.random.get_rng_state().numpy()
        if torch.cuda.is_available():
            state["cuda"] = [one.numpy() for one in torch.cuda.get_rng_state_all()]
    context = _tensorflow()
    if context is not None and getattr(context, "_seed", None) is not None:
        state["tensorflow"] = {"seed": int(context._seed), "operations": context._rng.getstate()}
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts the generators back to what ``captured`` found; those that this process does not have are left out."""
    if state["keras"] is not None:
        generator: Any = keras_saving.global_seed_generator(create=True)  # which draws from Python's
        generator.state.assign(state["keras"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch = sys.modules.get("torch")
    if torch is not None and state["torch"] is not None:
        torch.random.set_rng_state(torch.from_numpy(state["torch"].copy()))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([torch.from_numpy(one.copy()) for one in state["cuda"]])
    context = _tensorflow()
    if context is not None and "tensorflow" in state:
        # A seed that is set anew makes every random operation begin again.
        if context._seed != state["tensorflow"]["seed"]:
            context._set_global_seed(state["tensorflow"]["seed"])
        context._rng.setstate(state["tensorflow"]["operations"])


def _tensorflow() -> Any | None:
    """TensorFlow's eager context, which the seeds of ``tf.data`` and ``tf.random`` come from; None on another backend."""
    module = sys.modules.get("tensorflow.python.eager.context")
    return None if module is None or keras.backend.backend() != "tensorflow" else module.context()
