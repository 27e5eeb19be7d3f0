"""``python -m benchmarks.catalogue.table``: puts the measured rows into the table of docs/catalogue.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memfit import units

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "catalogue.md"
BEGIN, END = "<!-- rows -->", "<!-- end of rows -->"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "failed" in row:
        return f"| {row['cause']} | {row['name']} | {row['backend']} | does not run: {row['failed'][:80]} | | | | | | |"
    plain, ours = row["plain"], row["memfit"]
    agreement = "" if ours["difference"] is None else f"{ours['difference']:.0e}"
    cells = (
        row["cause"],
        row["name"],
        row["backend"],
        units.text(row["uncapped"]["peak_bytes"]),
        units.text(row["cap_bytes"]),
        "no longer grows" if row.get("gone") else plain["outcome"].partition(":")[0],
        ours["outcome"].partition(":")[0],
        units.text(ours["peak_bytes"]),
        f"{row['uncapped']['seconds']:.0f} / {ours['seconds']:.0f}",
        agreement,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Reads the rows and writes the page."""
    files = sorted((ROOT / "benchmarks" / "results").glob("catalogue-*.jsonl"))
    rows = [json.loads(text) for file in files for text in file.read_text().splitlines()]
    rows.sort(key=lambda row: (row["cause"], row["name"], row["backend"]))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    head = (
        "| # | cause | backend | peak without a cap | cap | plain | memfit | memfit's peak | seconds, plain / memfit "
        "| difference |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    PAGE.write_text("\n".join([before + BEGIN, "", head, *map(line, rows), "", END + after]))


if __name__ == "__main__":
    main()
