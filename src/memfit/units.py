"""Bytes as people write them: ``parse("12 GiB")`` and ``text(12884901888)``.

Bytes are ``int`` everywhere else in memfit; they become text only where a person reads them.
"""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SCALE = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "k": KIB,
    "m": MIB,
    "g": GIB,
    "t": 1024**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024**4,
}
_DIGITS = 30
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)


def text(num_bytes: int) -> str:
    """Bytes as a short text in binary units.

    Args:
        num_bytes: A number of bytes; negative numbers keep their sign.

    Returns:
        Three significant digits at most, for example ``"7.9 GiB"``.

    Example:
        >>> text(0), text(1536), text(8_500_000_000), text(-2 * MIB)
        ('0 B', '1.5 KiB', '7.9 GiB', '-2 MiB')
    """
    sign = "-" if num_bytes < 0 else ""
    size = float(abs(num_bytes))
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 999.5 or unit == "TiB":
            digits = f"{size:.0f}" if size >= 99.5 or unit == "B" else f"{size:.1f}".removesuffix(".0")
            return f"{sign}{digits} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def parse(quantity: str) -> int:
    """The number of bytes that a text names.

    Args:
        quantity: A number with a unit: ``"12 GiB"``, ``"12G"``, ``"800 MB"``. ``KiB``, ``MiB``, ``GiB`` and the bare
            letters are powers of 1024; ``kB``, ``MB``, ``GB`` are powers of 1000 (IEC 80000-13).

    Raises:
        ValueError: The text is not a number with a unit of bytes.

    Example:
        >>> parse("12 GiB"), parse("1.5G"), parse("800 MB"), parse("4096")
        (12884901888, 1610612736, 800000000, 4096)
    """
    match = _QUANTITY.fullmatch(quantity)
    if match is None or match[2].lower() not in _SCALE or len(match[1]) > _DIGITS:
        raise ValueError(f"A number of bytes is written like '12 GiB', '800 MB' or '4096'. Received: {quantity!r}")
    scale = _SCALE[match[2].lower()]
    return int(match[1]) * scale if match[1].isdigit() else int(float(match[1]) * scale)
