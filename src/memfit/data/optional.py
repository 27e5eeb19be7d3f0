"""Libraries that only some loaders need."""

from __future__ import annotations

import importlib
import types

from memfit import errors


def required(module: str, *, extra: str, purpose: str) -> types.ModuleType:
    """The module.

    Args:
        module: Its name, dots and all.
        extra: The extra of memfit that brings it.
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        MemfitError: It is not installed; the text says how to install it.

    Example:
        >>> required("json", extra="table", purpose="A test").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise errors.MemfitError(
            f"{purpose} needs {error.name}, which is not installed. Run: pip install 'memfit[{extra}]'"
        ) from error
