"""What options of several commands are parsed with: each raises the message that ``argparse`` shows the user."""

from __future__ import annotations

import argparse

from memfit import units


def positive(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: It is not one.
    """
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1. Received: {text!r}")
    return number


def num_bytes(text: str) -> int:
    """A number of bytes such as "1.5 GiB".

    Raises:
        argparse.ArgumentTypeError: It is not one, or it is zero.
    """
    try:
        number = units.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be more than 0 bytes. Received: {text!r}")
    return number


def shape(text: str) -> tuple[int, ...]:
    """A shape such as "224,224,3"; "()" or "scalar" for a single number.

    Raises:
        argparse.ArgumentTypeError: It is not one.
    """
    if text.strip() in ("()", "scalar"):
        return ()
    return tuple(positive(part) for part in text.strip("() ").rstrip(",").split(","))
