"""When a compiled program is at its peak, from the order of its instructions in XLA's text."""

from __future__ import annotations

import re

from memfit.backends.on_jax.scratch import ITEM_BYTES
from memfit.records import Moment

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<type>\([^=]*?\)|\S+) (?P<op>[\w\-]+)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_FREE = frozenset({"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all"})
_WORD = re.compile(r"[\w\-]+")


def of_program(text: str, layers: dict[str, str]) -> Moment | None:
    """The instruction at which most bytes are alive beside the arguments, as JAX names what it came from.

    Args:
        text: A scheduled program (``compiled.as_text()``).
        layers: The path of each Keras layer by its name.
    """
    lines = [match for line in _entry(text) if (match := _INSTRUCTION.match(line)) is not None]
    last_use = _last_uses(lines)
    sizes: dict[str, int] = {}
    ending: dict[int, list[str]] = {}
    live = peak = at = 0
    for place, line in enumerate(lines):
        if line["op"] not in _FREE:
            sizes[line["name"]] = _bytes(line["type"])
            live += sizes[line["name"]]
            ending.setdefault(last_use.get(line["name"], place), []).append(line["name"])
        if live > peak:
            peak, at = live, place
        live -= sum(sizes[name] for name in ending.pop(place, ()))
    sources = [(place, match[1]) for place, line in enumerate(lines) if (match := _SOURCE.search(line["rest"]))]
    named = [(place, source) for place, source in sources if source.startswith("jit(")]
    if not named:
        return None
    last_backward = max((place for place, source in named if "transpose(" in source), default=-1)
    place, source = min(named, key=lambda entry: (abs(entry[0] - at), entry[0]))
    return Moment(_phase(source, place > last_backward >= 0), _layer(source, layers), source.rsplit("/", 1)[-1])


def _entry(text: str) -> list[str]:
    """The lines of the program's entry computation."""
    _, _, rest = text.partition("\nENTRY ")
    return rest.partition("\n}")[0].splitlines()


def _last_uses(lines: list[re.Match[str]]) -> dict[str, int]:
    """The place where each instruction's memory is read last: by a user, or by a user of what stands for it."""
    last: dict[str, int] = {}
    for place in reversed(range(len(lines))):
        line = lines[place]
        until = last.get(line["name"], place) if line["op"] in _FREE else place
        for operand in _OPERAND.findall(line["rest"]):
            last[operand] = max(last.get(operand, 0), until)
    return last


def _bytes(type_text: str) -> int:
    total = 0
    for dtype, shape in _ARRAY.findall(type_text):
        size = ITEM_BYTES.get(dtype, 4)
        for dimension in shape.split(","):
            size *= int(dimension) if dimension else 1
        total += size
    return total


def _phase(source: str, after_backward: bool) -> str:
    if "transpose(" in source:
        return "backward"
    return "update" if after_backward and "jvp(" not in source else "forward"


def _layer(source: str, layers: dict[str, str]) -> str | None:
    """The innermost layer whose name scope the operation was made in."""
    found = [word for word in _WORD.findall(source) if word in layers]
    return layers[found[-1]] if found else None
