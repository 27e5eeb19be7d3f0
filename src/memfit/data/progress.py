"""A line on stderr now and then, while something is read before training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def stderr_progress(doing: str, unit: str, *, clock: Callable[[], float] = time.monotonic) -> Callable[[int], None]:
    """A callback that says every two seconds how far it is; silent where all is done sooner.

    Args:
        doing: What is done, such as "listing the images in pets".
        unit: What is counted, such as "files".
        clock: Seconds.
    """
    last_said = clock()

    def say(count: int) -> None:
        nonlocal last_said
        if clock() - last_said > 2:
            last_said = clock()
            print(f"memfit: {doing}: {count:,} {unit} so far", file=sys.stderr, flush=True)

    return say
