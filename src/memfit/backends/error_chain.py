"""An error with everything that it came from."""

from __future__ import annotations

from collections.abc import Iterator


def links(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and the members of groups; each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting.append(link.__cause__)
        if not link.__suppress_context__:
            waiting.append(link.__context__)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)
