"""``keras.Model.fit`` replaced for code that knows nothing of memfit, and put back."""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Replacement = Callable[..., Any]
"""Takes the model and what the method takes."""

_state = threading.local()


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Inside, this thread's calls of the replaced methods are Keras' own: memfit itself, and the callbacks of a run."""
    before = getattr(_state, "suspended", False)
    _state.suspended = True
    try:
        yield
    finally:
        _state.suspended = before


def replaced(replacements: Mapping[str, Replacement]) -> Callable[[], None]:
    """Puts replacements in the place of methods of ``keras.Model``; Keras is imported for it.

    A class that defines the method itself and calls ``super()`` keeps its own: what it calls is replaced.

    Returns:
        A function that puts Keras' own back.
    """
    import keras

    kept = {name: vars(keras.Model).get(name) for name in replacements}
    for name, replacement in replacements.items():
        setattr(keras.Model, name, _intercepting(name, getattr(keras.Model, name), replacement))

    def put_back() -> None:
        for name, method in kept.items():
            if method is None:
                delattr(keras.Model, name)
            else:
                setattr(keras.Model, name, method)

    return put_back


def _intercepting(name: str, original: Callable[..., Any], replacement: Replacement) -> Callable[..., Any]:
    @functools.wraps(original)
    def intercepting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_state, "suspended", False):
            return original(self, *args, **kwargs)
        with _called_directly(self, name, original, intercepting):
            return replacement(self, *args, **kwargs)

    return intercepting


@contextlib.contextmanager
def _called_directly(model: Any, name: str, original: Callable[..., Any], intercepting: Any) -> Iterator[None]:
    """Inside, the method of a class of the user's own, which has brought us here, is not entered a second time."""
    if getattr(type(model), name) is intercepting:
        yield
        return
    object.__setattr__(model, name, types.MethodType(original, model))
    try:
        yield
    finally:
        object.__delattr__(model, name)


def when_imported(name: str, then: Callable[[], Any]) -> None:
    """Calls ``then`` once a module is imported, or now where it is already."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Awaited(name, then))


class _Awaited(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, then: Callable[[], Any]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            del loader.exec_module
            execute(module)
            self._then()

        loader.exec_module = exec_module
        return spec
