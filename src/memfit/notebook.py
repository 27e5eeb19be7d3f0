"""``%load_ext memfit``: every ``model.fit`` of the notebook protected, ``%memfit`` and ``%%memfit``."""

from __future__ import annotations

from typing import Any

from memfit import backends, budgeting, protecting, units
from memfit.errors import MemfitError
from memfit.guarding.watch import Watcher
from memfit.reporting import holders


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext memfit``."""
    protecting.begin()

    def memfit(line: str, cell: str | None = None) -> Any:
        """``%memfit``: what holds memory now. ``%%memfit [BUDGET]``: the cell, with what it took."""
        if cell is None:
            return now(shell)
        return run_cell(shell, line.strip(), cell)

    shell.register_magic_function(memfit, magic_kind="line_cell", magic_name="memfit")


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext memfit``."""
    protecting.end()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("memfit", None)


def now(shell: Any) -> holders.Holders:
    """The largest arrays, tensors and models of a notebook by name.

    Args:
        shell: The notebook's, with ``user_ns``.
    """
    return holders.of_namespace(shell.user_ns, budgeting.reading(backends.current()))


def run_cell(shell: Any, budget: str, cell: str) -> None:
    """Runs a cell, with a budget for the training in it where one is named, and says what it took.

    Args:
        shell: The notebook's.
        budget: A text like "4 GiB", or empty.
        cell: The code.
    """
    backend = backends.current()
    if budget:
        try:
            budgeting.budget(budget, backend=backend)
        except MemfitError as error:
            print(f"memfit: the cell was not run: {error}")
            return
        protecting.begin(budget=budget)
    before = budgeting.reading(backend)
    try:
        with Watcher(backend) as watcher:
            shell.run_cell(cell)
    finally:
        if budget:
            protecting.end()
    after, peak = budgeting.reading(backend), watcher.peak
    print(
        f"memfit: the cell took {units.text(max(0, peak.host_bytes - before.host_bytes))} of host memory at its peak "
        f"({units.text(peak.host_bytes)} in all); {units.text(after.host_bytes - before.host_bytes)} of it stayed"
    )
    if peak.device_bytes is not None and before.device_bytes is not None:
        print(
            f"memfit: device memory: {units.text(peak.device_bytes)} at the peak, {units.text(before.device_bytes)} before"
        )
