"""An error with everything that it came from."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

_RETOLD = "Exception encountered when calling "
"""How Keras begins where it tells of the layer in which an error was raised: the first one is only its context then."""


def links(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling or is retold from, and the members of groups; each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting.append(link.__cause__)
        if not link.__suppress_context__ or str(link).startswith(_RETOLD):
            waiting.append(link.__context__)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)


def drop_frames(error: BaseException) -> None:
    """Empties the frames that an error and all that it came from passed through: their tensors are let go.

    A failed attempt otherwise lives as long as anything holds its error: a notebook's last error, a logger, a debugger.
    """
    for link in links(error):
        traceback.clear_frames(link.__traceback__)
