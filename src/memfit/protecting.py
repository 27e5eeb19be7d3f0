"""Code that calls ``model.fit``, protected as if it called ``memfit.fit``: a block, a notebook, a script."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from memfit.guarding import interception

PROTECTED = {"fit": None, "evaluate": ("budget",), "predict": ("budget",)}
"""Methods of ``keras.Model`` that go through memfit's function of that name, and the options that are for it (None: all)."""

_DATA = ("x", "validation_data")
"""Arguments that may be iterators of an ``ImageDataGenerator``: memfit's own data set of the same distribution is faster."""

_lock = threading.Lock()
_options: list[dict[str, Any]] = []
_put_back: Callable[[], None] | None = None


@contextlib.contextmanager
def protect(**options: Any) -> Iterator[None]:
    """Inside, ``fit``, ``evaluate`` and ``predict`` of any Keras model are memfit's; afterwards Keras' own again.

    Blocks may stand inside of one another: the options of the innermost count. What a callback calls during a run is Keras'
    own.

    Args:
        **options: Arguments of ``memfit.fit`` beside those of ``model.fit``: ``budget``, ``allow``, ``probe``, ``isolate``.

    Example:
        >>> import keras, numpy as np, memfit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> with memfit.protect():
        ...     history = model.fit(np.ones((64, 4), "float32"), np.ones((64, 1), "float32"), verbose=0)
        >>> history.memfit.plan.batch_size
        32
    """
    begin(**options)
    try:
        yield
    finally:
        end()


def begin(**options: Any) -> None:
    """Protects from here on, until ``end``."""
    global _put_back
    with _lock:
        if not _options:
            _put_back = interception.replaced({name: functools.partial(_protected, name) for name in PROTECTED})
        _options.append(options)


def end() -> None:
    """Takes off the last protection."""
    global _put_back
    with _lock:
        _options.pop()
        if not _options and _put_back is not None:
            _put_back()
            _put_back = None


def _protected(name: str, model: Any, *args: Any, **arguments: Any) -> Any:
    from memfit import evaluating, fitting

    names = PROTECTED[name]
    options = {key: value for key, value in _options[-1].items() if names is None or key in names}
    with interception.suspended():
        ours = getattr(fitting if name == "fit" else evaluating, name)
        args = (*map(_translated, args[:1]), *args[1:])
        arguments = {key: _translated(one) if key in _DATA else one for key, one in arguments.items()}
        return ours(model, *args, **{**options, **arguments})


def _translated(data: Any) -> Any:
    from memfit.data.image_generator import translated

    made, _ = translated(data)
    return data if made is None else made
