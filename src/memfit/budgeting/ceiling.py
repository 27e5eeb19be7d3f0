"""A number of bytes and the sentence that says where it came from."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """An upper bound in bytes.

    Attributes:
        bytes: The bound; at least 1.
        source: Where it came from, as a part of a sentence that a user reads.
    """

    bytes: int
    source: str
