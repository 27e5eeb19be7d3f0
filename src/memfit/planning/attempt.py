"""What is not predicted to fit and may fit all the same: an attempt, where being wrong costs no more than a restart.

A prediction is wrong in both directions. With its margin it says what surely fits; what does not even fit less its margin is
ruled out. Between the two a supervised process is worth an attempt, and one that nobody starts again is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memfit.planning.fastest import Found
from memfit.planning.planner import pulled_text
from memfit.records import Estimate, Levers
from memfit.units import text

Attempt = Callable[[str, str], None]
"""Told what is attempted, in words, and why nothing is predicted to fit, before it begins."""

_COMPILING_FACTOR = 2.5
"""The guess of what compiling takes was seen to be up to so many times what it took."""

_WHY = "it is attempted all the same, as the process is supervised and a kill costs a restart"


def is_ruled_out(peak: Estimate, ceiling: int) -> bool:
    """Whether a step is above the ceiling even less its margin.

    Example:
        >>> is_ruled_out(Estimate(110, 10, "scripted"), ceiling=100), is_ruled_out(Estimate(111, 10, "scripted"), ceiling=100)
        (False, True)
    """
    return peak.bytes - peak.margin > ceiling


def is_compiling_ruled_out(guess: int, room: int) -> bool:
    """Whether compiling takes more than the room, be the guess as much too high as guesses were seen to be."""
    return guess > _COMPILING_FACTOR * room


def smallest(asked: Iterable[Found[Levers]], ceiling: int) -> Found[Levers] | None:
    """The arrangement of the lowest peak among some that do not fit with their margin; None where even that is ruled out."""
    least = min(asked, key=lambda found: found.peak.upper, default=None)
    return None if least is None or is_ruled_out(least.peak, ceiling) else least


def step_sentence(smallest: Found[Levers], batch_size: int, ceiling: int) -> str:
    """What a person is told before the attempt of a step."""
    what, peak = pulled_text(smallest, batch_size), smallest.peak
    return (
        f"{what} is predicted to need {text(peak.bytes)}, {text(peak.margin)} more or less, of {text(ceiling)}; {_WHY}"
    )


def compiling_sentence(guess: int, room: int) -> str:
    """What a person is told before the attempt to compile."""
    return f"compiling the step is guessed to take {text(guess)} of the {text(max(0, room))} that are left; {_WHY}"
