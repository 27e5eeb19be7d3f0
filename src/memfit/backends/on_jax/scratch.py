"""Bytes that XLA's CPU kernels take beside the buffers that the compiler assigned.

``memory_analysis`` counts one slab for all temporaries. The library that XLA calls for convolutions and matrix products on
a CPU (YNNPACK, seen in the program's text as ``__ynn_fusion``) allocates its packed operands by itself, while it runs. The
rules were read off jaxlib 0.10.2 by measuring single kernels; benchmarks/prediction.py has how they hold on whole models:

- a convolution without padding lays out every window of its input ("im2col"), and so does one with several groups;
- one with padding, or with one channel a group, packs its input;
- the second operand is packed too, except in some large shapes: so it goes into the margin;
- a matrix product whose left operand is contracted along another than its last axis packs both operands;
- a dilated input is written out with its zeros, and the output once more; with groups, every window is laid out.
"""

from __future__ import annotations

import dataclasses
import math
import re

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<dtype>\w+)\[(?P<shape>[\d,]*)\]\S* "
    r"(?P<op>[\w\-]+)\((?P<args>[^)]*)\)(?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(r"calls=%?([\w.\-]+),.*__ynn_fusion")


@dataclasses.dataclass(frozen=True)
class Scratch:
    """What the most demanding kernel of a program takes.

    Attributes:
        bytes: What was seen in every shape measured.
        more: What some shapes took beyond that.
    """

    bytes: int
    more: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    op: str
    item: int
    shape: tuple[int, ...]
    args: tuple[str, ...]
    rest: str
    computation: str

    @property
    def bytes(self) -> int:
        return self.item * math.prod(self.shape)


def of_program(text: str) -> Scratch:
    """The scratch of an optimized CPU program, from its text (``compiled.as_text()``).

    Kernels run one after the other, or a few of them together: the largest counts, the second largest is kept as a margin.
    """
    instructions = _instructions(text)
    packing = set(_CALLED.findall(text))
    found = [Scratch(0, 0), Scratch(0, 0)]
    for instruction in instructions.values():
        operands = [instructions[name] for name in instruction.args if name in instructions]
        if instruction.op == "convolution" and len(operands) == 2:
            found.append(_convolution(instruction, *operands, packs=instruction.computation in packing))
        elif instruction.op == "dot" and len(operands) == 2 and instruction.computation in packing:
            found.append(_product(instruction, *operands))
    largest, second = sorted(found, key=lambda scratch: -scratch.bytes)[:2]
    return Scratch(
        largest.bytes, max(scratch.bytes + scratch.more for scratch in found) - largest.bytes + second.bytes // 4
    )


def _instructions(text: str) -> dict[str, _Instruction]:
    found: dict[str, _Instruction] = {}
    computation = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header is not None:
            computation = header["name"].removeprefix("ENTRY ")
            continue
        match = _INSTRUCTION.match(line)
        if match is not None:
            shape = tuple(int(size) for size in match["shape"].split(",") if size)
            args = tuple(arg.strip().split(" ")[-1].removeprefix("%") for arg in match["args"].split(","))
            item = ITEM_BYTES.get(match["dtype"], 4)
            found[match["name"]] = _Instruction(match["op"], item, shape, args, match["rest"], computation)
    return found


def _convolution(out: _Instruction, lhs: _Instruction, rhs: _Instruction, *, packs: bool) -> Scratch:
    groups = re.search(r"feature_group_count=(\d+)", out.rest)
    num_groups = int(groups[1]) if groups is not None else 1
    channels = _channels(out.rest, lhs.shape)
    windows = math.prod(_output_positions(out.rest, out.shape)) * math.prod(_window(out.rest, "size"))
    im2col = lhs.item * windows * channels
    dilation = _window(out.rest, "lhs_dilate")
    if math.prod(dilation) > 1:
        return Scratch(im2col if num_groups > 1 else lhs.bytes * math.prod(dilation) + out.bytes, lhs.bytes + rhs.bytes)
    if not packs:
        return Scratch(0, lhs.bytes // 8)
    grouped = 1 < num_groups < channels
    if grouped or (num_groups == 1 and "pad=" not in out.rest):
        return Scratch(im2col + (lhs.bytes if grouped else 0), rhs.bytes)
    return Scratch(lhs.bytes, rhs.bytes)


def _product(out: _Instruction, lhs: _Instruction, rhs: _Instruction) -> Scratch:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", out.rest)
    last = contracted is not None and str(len(lhs.shape) - 1) in contracted[1].split(",")
    return Scratch(0, 0) if last else Scratch(lhs.bytes + rhs.bytes, 0)


def _window(attributes: str, name: str) -> list[int]:
    """One entry of ``window={size=3x3 stride=2x2 ...}`` as numbers."""
    match = re.search(rf"window=\{{[^}}]*\b{name}=([\dx]+)", attributes)
    return [int(size) for size in match[1].split("x")] if match is not None else []


def _labels(attributes: str) -> tuple[str, str]:
    match = re.search(r"dim_labels=(\w+)_\w+->(\w+)", attributes)
    return (match[1], match[2]) if match is not None else ("", "")


def _channels(attributes: str, shape: tuple[int, ...]) -> int:
    label = _labels(attributes)[0]
    return shape[label.index("f")] if "f" in label else 1


def _output_positions(attributes: str, shape: tuple[int, ...]) -> list[int]:
    """The sizes of the output's batch and spatial axes: the number of windows."""
    return [size for label, size in zip(_labels(attributes)[1], shape, strict=False) if label != "f"]
