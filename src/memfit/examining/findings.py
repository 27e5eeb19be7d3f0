"""One thing that was found, and all of them."""

from __future__ import annotations

import dataclasses
import json

from memfit import units


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing.

    Attributes:
        kind: "fact" (how it is), "note" (worth knowing) or "warning" (to be mended).
        what: A sentence.
        bytes: What it costs or is about; None where that depends on what cannot be seen.
        cure: What to do; empty for a fact.
        where: "file.py:12"; empty for the machine.
    """

    kind: str
    what: str
    bytes: int | None = None
    cure: str = ""
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        size = "" if self.bytes is None else f" [{units.text(self.bytes)}]"
        cure = f"\n    {self.cure}" if self.cure else ""
        return f"{self.kind:>7}  {place}{self.what}{size}{cure}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        items: In the order of looking.
    """

    items: tuple[Finding, ...]

    @property
    def num_warnings(self) -> int:
        """How many are to be mended."""
        return sum(one.kind == "warning" for one in self.items)

    def __str__(self) -> str:
        count = f"{self.num_warnings} to mend." if self.num_warnings else "Nothing to mend."
        return "\n".join([*map(str, self.items), count])

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"warnings": self.num_warnings, "findings": [dataclasses.asdict(one) for one in self.items]})
