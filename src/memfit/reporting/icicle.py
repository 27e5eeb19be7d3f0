"""Bytes by category and by layer as an icicle: rows of blocks as wide as what they stand for, and a table of the largest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape

from memfit import units
from memfit.records import Consumer, Profile

_LEAST_SHARE = 0.01
_NARROW_SHARE = 0.5
"""Outputs of layers that are a smaller part are drawn by themselves as well."""

_OUTPUTS = "outputs of layers"
_MOST_BLOCKS = 24
_HUES = (212, 24, 152, 276, 340, 48, 190)


@dataclasses.dataclass(frozen=True)
class Block:
    """One block, and what it is made of.

    Attributes:
        name: What is written on it.
        bytes: Its width.
        parts: Below it; no more bytes than its own.
    """

    name: str
    bytes: int
    parts: tuple[Block, ...] = ()


def of_step(profile: Profile, step: str) -> str:
    """The icicle of a step, and its largest consumers as a table.

    Args:
        profile: Of the step.
        step: Which step it is, in a sentence.
    """
    blocks = blocks_of(profile)
    total = sum(block.bytes for block in blocks)
    hues = dict(zip(blocks, _hues(len(blocks)), strict=True))
    alone = "".join(
        f'<p class="dim">{escape(block.name)}, by themselves:</p>{_rows([block], {block: hue})}'
        for block, hue in hues.items()
        if block.name == _OUTPUTS and block.bytes < _NARROW_SHARE * total
    )
    rows = "".join(
        f'<tr><td class="path">{_breakable(one.name)}</td><td>{"" if one.kind == one.name else escape(one.kind)}</td>'
        f'<td class="number">{units.text(one.bytes)}</td></tr>'
        for one in profile.consumers[:12]
        if one.bytes
    )
    said = (
        f"{step} Its predicted peak is {units.text(profile.peak.bytes)}. Blocks are by shapes: outputs of layers count from "
        "the forward pass to its end; at the peak some are gone already, and gradients of outputs come on top."
    )
    return (
        f'<p class="dim">{escape(said)}</p>{_rows(blocks, hues)}{alone}'
        f'<table><tr><th>Name</th><th>What</th><th class="number">Bytes</th></tr>{rows}</table>'
    )


def blocks_of(profile: Profile) -> tuple[Block, ...]:
    """Categories, with the layers below "outputs of layers", largest first.

    What the process held before training has the weights and the optimizer's state in it.
    """
    base = profile.base.host_bytes if profile.base.device_bytes is None else profile.base.device_bytes
    inside = (Block("weights", profile.weights), Block("optimizer state", profile.optimizer_state))
    rest = max(0, base - sum(part.bytes for part in inside))
    held = Block(
        "held before training",
        max(base, sum(part.bytes for part in inside)),
        (*inside, Block("framework and data", rest)),
    )
    found = (
        held,
        Block(_OUTPUTS, profile.activations, _by_path(profile.layers)),
        Block("gradients", profile.gradients),
        Block("inputs", profile.inputs),
        Block("workspace of kernels", profile.peak.workspace),
    )
    return tuple(sorted((block for block in found if block.bytes), key=lambda block: -block.bytes))


def _by_path(layers: Sequence[Consumer], depth: int = 0) -> tuple[Block, ...]:
    """Layers by the parts of their paths; a part that all of them share is left out."""
    groups: dict[str, list[Consumer]] = {}
    for layer in layers:
        parts = layer.name.split("/")
        groups.setdefault(parts[min(depth, len(parts) - 1)], []).append(layer)
    if len(groups) == 1 and any(layer.name.count("/") > depth for layer in layers):
        return _by_path(layers, depth + 1)
    found = []
    for name, members in groups.items():
        deeper = [member for member in members if member.name.count("/") > depth]
        parts_below = _by_path(members, depth + 1) if len(members) > 1 and deeper else ()
        found.append(Block(name, sum(member.bytes for member in members), parts_below))
    return _few(sorted((block for block in found if block.bytes), key=lambda block: -block.bytes))


def _few(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The largest, and the others as one."""
    total = sum(block.bytes for block in blocks)
    shown = [block for block in blocks[:_MOST_BLOCKS] if block.bytes >= _LEAST_SHARE * total]
    others = blocks[len(shown) :]
    if not others:
        return tuple(shown)
    return (*shown, Block(f"{len(others)} others", sum(block.bytes for block in others)))


def _rows(blocks: Sequence[Block], hues: Mapping[Block, int]) -> str:
    total = sum(block.bytes for block in blocks)
    cells = "".join(_cell(block, total, hues[block]) for block in blocks)
    return f'<div class="icicle"><div class="row">{cells}</div></div>'


def _breakable(path: str) -> str:
    """A path that a narrow column may break between its words."""
    return escape(path).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _cell(block: Block, total: int, hue: int, lightness: int = 34) -> str:
    share = 100 * block.bytes / total
    text = escape(f"{block.name}: {units.text(block.bytes)}")
    below = "".join(_cell(part, block.bytes, hue, min(46, lightness + 4)) for part in block.parts if part.bytes)
    row = f'<div class="row">{below}</div>' if below else ""
    return (
        f'<div class="cell" style="width:{share:.2f}%"><div class="name" style="background:hsl({hue} 45% {lightness}%)" '
        f'title="{text}">{text}</div>{row}</div>'
    )


def _hues(number: int) -> list[int]:
    return [_HUES[index % len(_HUES)] for index in range(number)]
