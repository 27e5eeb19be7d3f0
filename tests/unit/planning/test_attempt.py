from __future__ import annotations

import pytest

from memfit.planning import attempt
from memfit.planning.fastest import Found, Option
from memfit.records import NO_LEVERS, Estimate, Levers


def found(size: int, num_bytes: int, margin: int, levers: Levers = NO_LEVERS) -> Found[Levers]:
    return Found(Option(levers), size, Estimate(num_bytes, margin, "scripted"), 1.0)


def test_the_smallest_is_attempted_where_it_may_fit_less_its_margin() -> None:
    asked = (found(8, 130, 40), found(1, 120, 20))
    assert attempt.smallest(asked, 100) == asked[1]
    assert attempt.smallest(asked, 99) is None
    assert attempt.smallest((), 100) is None


@pytest.mark.parametrize(("guess", "is_ruled_out"), [(250, False), (251, True)])
def test_compiling_is_ruled_out_where_even_a_guess_that_is_far_too_high_is(guess: int, is_ruled_out: bool) -> None:
    assert attempt.is_compiling_ruled_out(guess, 100) == is_ruled_out
    assert attempt.is_compiling_ruled_out(1, -5)


def test_what_is_attempted_is_told_with_its_numbers() -> None:
    said = attempt.step_sentence(found(1, 3 * 2**20, 2**20, Levers(own_pages=True)), 8, 3 * 2**20)
    assert said.startswith("one sample at a time with ")
    assert "3 MiB, 1 MiB more or less, of 3 MiB; it is attempted all the same" in said
