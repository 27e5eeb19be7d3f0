"""What a bound on host memory does to NumPy, each check in a process of its own: ``python host_bound_script.py NAME``.

What other tests have left on the heap would be room.
"""

from __future__ import annotations

import contextlib
import sys

import numpy as np

from memfit import budgeting
from memfit.backends import host_allocator
from memfit.backends.host_bound import HostBound
from memfit.units import MIB

ROOM = 128 * MIB
BLOCK = 16 * MIB


def held() -> int:
    return budgeting.reading().host_bytes


def taken(most: int) -> list[np.ndarray]:
    """Blocks that are written to, until one fails or there are so many bytes."""
    blocks: list[np.ndarray] = []
    try:
        while len(blocks) * BLOCK < most:
            blocks.append(np.ones(BLOCK, "uint8"))
    except MemoryError:
        pass
    return blocks


def what_goes_beyond_the_bound_fails_and_afterwards_does_not() -> None:
    bound = HostBound(held() + ROOM)
    with bound.applied():
        blocks = taken(2 * ROOM)
    assert 0.75 * ROOM <= len(blocks) * BLOCK <= ROOM
    blocks.append(np.ones(2 * ROOM, "uint8"))


def what_is_mapped_and_never_touched_does_not_count() -> None:
    untouched = np.empty(4 * ROOM, "uint8")
    bound = HostBound(held() + ROOM)
    with bound.applied():
        assert len(taken(2 * ROOM)) * BLOCK >= 0.75 * ROOM
    del untouched
    bound._next_look = 0.0
    with bound.applied():
        assert len(taken(2 * ROOM)) * BLOCK <= ROOM, "what was untouched and is gone is not room"


def arrays_that_come_between_two_steps_do_not_count_before_they_are_touched() -> None:
    bound = HostBound(held() + ROOM)
    untouched = np.empty(4 * ROOM, "uint8")
    bound._next_look = 0.0
    with bound.applied():
        assert len(taken(2 * ROOM)) * BLOCK >= 0.75 * ROOM
    assert untouched.size == 4 * ROOM


def what_is_mapped_in_a_step_and_never_touched_is_found_to_be_room_once() -> None:
    bound = HostBound(held() + ROOM)
    with bound.applied():
        untouched = np.empty(ROOM // 2, "uint8")
        assert len(taken(2 * ROOM)) * BLOCK <= ROOM // 2
    assert bound.finds_room()
    assert not bound.finds_room()
    with bound.applied():
        assert len(taken(2 * ROOM)) * BLOCK >= 0.75 * ROOM
    del untouched


def free_pages_of_the_heap_are_room_but_not_more_room() -> None:
    """They are filled again without a new mapping; what is left for mappings is so much less."""
    small = [np.ones(100_000, "uint8") for _ in range(600)]
    last = np.ones(100_000, "uint8")
    del small
    bound = HostBound(held() + ROOM)  # gives the pages back
    bound._most = most = held() + ROOM
    bound.calibrate()
    with bound.applied():
        again = [np.ones(100_000, "uint8") for _ in range(600)]
        blocks = taken(2 * ROOM)
        assert held() <= most + 2 * MIB
    assert len(blocks) * BLOCK >= ROOM // 4
    assert len(again) + last.size


def free_pages_of_the_heap_are_not_taken_for_large_blocks_in_pages_of_their_own() -> None:
    small = [np.ones(100_000, "uint8") for _ in range(1200)]
    last = np.ones(100_000, "uint8")
    del small
    before = held()
    restore = host_allocator.map_large_blocks(close_gaps=True)
    bound = HostBound(held() + ROOM)
    bound._most = most = held() + ROOM
    bound.calibrate()
    with bound.applied():
        blocks = taken(2 * ROOM)
        assert held() <= most + 2 * MIB
    assert 0.75 * ROOM <= len(blocks) * BLOCK <= ROOM
    del blocks
    free = host_allocator.free_bytes()
    restore()
    assert host_allocator.free_bytes() - free >= 100 * MIB
    assert held() <= before + last.size


def gaps_are_closed_after_an_allocation_that_failed() -> None:
    """From then on glibc gives this thread memory of another heap."""
    small = [np.ones(100_000, "uint8") for _ in range(1200)]
    last = np.ones(100_000, "uint8")
    with HostBound(held() + BLOCK).applied():
        taken(ROOM)
    del small
    free = host_allocator.free_bytes()
    restore = host_allocator.map_large_blocks(close_gaps=True)
    assert free - host_allocator.free_bytes() >= 100 * MIB
    restore()
    assert last.size


def what_was_free_as_an_allocation_failed_is_no_room_but_no_loss_either() -> None:
    """glibc gives the thread memory of another heap from then on, and comes back to gaps on the first where nothing is left.

    In ``raised`` there would be something left, until it ends with an error.
    """
    small = [np.ones(100_000, "uint8") for _ in range(1200)]
    last = np.ones(100_000, "uint8")
    bound = HostBound(held() + BLOCK)
    with bound.applied():
        taken(ROOM)
    del small
    bound._most = most = held() - 1200 * 100_000 + ROOM
    bound.start_over()
    more: list[np.ndarray] = []
    with bound.applied(), contextlib.suppress(MemoryError):
        while len(more) * 100_000 < 2 * ROOM:
            with bound.raised(BLOCK):
                more.append(np.ones(100_000, "uint8"))
    assert held() <= most + BLOCK
    assert 0.75 * ROOM <= len(more) * 100_000 <= ROOM + BLOCK
    free = host_allocator.free_bytes()
    bound.let_go()
    assert host_allocator.free_bytes() - free >= 100 * MIB
    assert last.size


def small_gaps_are_closed_before_each_step_from_then_on() -> None:
    bound = HostBound(held() + ROOM)
    small = [np.ones(70_000, "uint8") for _ in range(1600)]
    kept = small[::2]
    del small
    assert not bound.keep_gaps_closed(), "no step has found any"
    bound._next_look = 0.0
    with bound.applied():
        gaps = host_allocator.free_bytes()
    assert gaps >= 40 * MIB
    assert bound.keep_gaps_closed()
    assert not bound.keep_gaps_closed()
    bound._most = most = held() + ROOM
    for step in range(3):
        with bound.applied():
            assert step > 0 or host_allocator.free_bytes() <= gaps // 4  # later ones find the room of the one before
            blocks = taken(2 * ROOM)
            assert held() <= most + 2 * MIB
        assert 0.75 * ROOM <= len(blocks) * BLOCK <= ROOM
        del blocks
    bound.let_go()
    assert host_allocator.free_bytes() >= gaps
    assert len(kept) == 800


def what_cannot_be_undone_goes_beyond_it() -> None:
    bound = HostBound(held() + ROOM)
    with bound.applied():
        with bound.lifted():
            blocks = taken(2 * ROOM)
        assert len(blocks) * BLOCK == 2 * ROOM
        assert not taken(ROOM)


def a_limit_that_was_there_stays() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    bound = HostBound(held() + ROOM)
    with bound.applied():
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] != before[0]
    with contextlib.suppress(KeyError), bound.applied():
        raise KeyError
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    try:
        own = held() + 8 * 2**30
        resource.setrlimit(resource.RLIMIT_DATA, (own, before[1]))
        with HostBound(own * 4).applied():
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == own, "the user's own is lower"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
