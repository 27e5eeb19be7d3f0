"""Dicts, lists and tuples of arrays, walked without Keras: a mistake in the data is found before Keras is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mapped(function: Callable[..., Any], *structures: Any) -> Any:
    """The first structure with ``function`` of the leaves of all in place of its leaves; None stays None.

    Example:
        >>> mapped(lambda a, b: a + b, {"x": 1, "y": (2, None)}, {"x": 10, "y": (20, None)})
        {'x': 11, 'y': (22, None)}
    """
    first = structures[0]
    if isinstance(first, dict):
        return {key: mapped(function, *(other[key] for other in structures)) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(mapped(function, *parts) for parts in zip(*structures, strict=True))
    return None if first is None else function(*structures)


def leaves(structure: Any) -> list[Any]:
    """The leaves in order, without None.

    Example:
        >>> leaves(({"a": 1, "b": [2]}, None))
        [1, 2]
    """
    found: list[Any] = []
    mapped(found.append, structure)
    return found


def named_leaves(structure: Any, name: str) -> list[tuple[str, Any]]:
    """The leaves with how a user writes each: ``x["a"][0]``.

    Example:
        >>> named_leaves({"a": [5]}, "x")
        [("x['a'][0]", 5)]
    """
    if isinstance(structure, dict):
        return [found for key, part in structure.items() for found in named_leaves(part, f"{name}[{key!r}]")]
    if isinstance(structure, (list, tuple)):
        return [found for i, part in enumerate(structure) for found in named_leaves(part, f"{name}[{i}]")]
    return [] if structure is None else [(name, structure)]
