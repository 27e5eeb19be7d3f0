"""Allocations that fail instead of the process being ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memfit.backends.host_bound import HostBound

SCRIPT = Path(__file__).with_name("host_bound_script.py")


@pytest.mark.skipif(not HostBound.is_possible(), reason="Linux with a glibc that says what is free")
@pytest.mark.parametrize(
    "check",
    [
        "what_goes_beyond_the_bound_fails_and_afterwards_does_not",
        "what_is_mapped_and_never_touched_does_not_count",
        "arrays_that_come_between_two_steps_do_not_count_before_they_are_touched",
        "what_is_mapped_in_a_step_and_never_touched_is_found_to_be_room_once",
        "free_pages_of_the_heap_are_room_but_not_more_room",
        "free_pages_of_the_heap_are_not_taken_for_large_blocks_in_pages_of_their_own",
        "gaps_are_closed_after_an_allocation_that_failed",
        "what_was_free_as_an_allocation_failed_is_no_room_but_no_loss_either",
        "small_gaps_are_closed_before_each_step_from_then_on",
        "what_cannot_be_undone_goes_beyond_it",
        "a_limit_that_was_there_stays",
    ],
)
def test_in_a_process_of_its_own(check: str) -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), check], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


def test_elsewhere_it_is_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not HostBound.is_possible()
