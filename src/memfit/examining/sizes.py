"""How many bytes arrays and pipelines of parsed code hold, as far as the code, and folders that it names, tell."""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memfit import units
from memfit.examining import reading
from memfit.examining.reading import Chain, Names

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
"""What ``image_dataset_from_directory`` takes for an image."""

_MOST_FILES = 1_000_000
_CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
_KEEP = frozenset({"cache", "prefetch", "shuffle", "with_options"})
_MAKERS = frozenset({"zeros", "ones", "empty", "full", "rand", "randn", "random"})
_RANDOM = frozenset({"rand", "randn", "random"})
_OWNERS = frozenset({"np", "numpy", "random"})
_SHAPES = ("image_size", "img_size", "target_size", "input_shape", "image_shape", "shape", "dim")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array, or one sample.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}".lstrip()


@dataclasses.dataclass(frozen=True)
class Elements:
    """What a pipeline yields, as far as it is told; None for what is not.

    Attributes:
        sample: One sample.
        noun: What a sample is called.
        number: How many samples there are.
        is_batched: Whether they come in batches.
        batch_size: Samples of a batch.
        proviso: What the bytes hold under, where that is not sure.
    """

    sample: Array | None = None
    noun: str = "sample"
    number: int | None = None
    is_batched: bool = False
    batch_size: int | None = None
    proviso: str = ""

    def samples_of(self, elements: int | None) -> int | None:
        """Samples of some elements."""
        if elements is None or (self.is_batched and self.batch_size is None):
            return None
        return elements * (self.batch_size or 1) if self.is_batched else elements

    def amount(self, samples: int | None) -> tuple[int | None, str]:
        """Bytes of some samples, and what they are; where not all of it is told the formula, with what is.

        Example:
            >>> images = Elements(Array((224, 224, 3), "float32"), "image")
            >>> images.amount(1000)
            (602112000, '1000 images of 224 x 224 x 3 float32')
            >>> print(images.amount(None)[1])
            588 KiB for each image of 224 x 224 x 3 float32, 574 MiB for each 1000
            >>> print(Elements().amount(640)[1])
            640 samples, times the bytes of one, which the code does not tell
        """
        if self.sample is None:
            number = f"its {self.noun}s" if samples is None else f"{samples} {self.noun}s"
            return None, f"{number}, times the bytes of one, which the code does not tell"
        proviso = self.proviso and f", {self.proviso}"
        if samples is None:
            one, many = units.text(self.sample.bytes), units.text(1000 * self.sample.bytes)
            return None, f"{one} for each {self.noun} of {self.sample}, {many} for each 1000{proviso}"
        what, held = f"{samples} {self.noun}s of {self.sample}", samples * self.sample.bytes
        return (None, f"{what}, {units.text(held)}{proviso}") if proviso else (held, what)


def array_of(node: ast.AST | None, names: Names) -> Array | None:
    """The array that an expression makes, where its shape and dtype can be read off."""
    if isinstance(node, ast.Name):
        meant = names.meant(node)
        return None if meant is None else array_of(meant, names)
    if not isinstance(node, ast.Call):
        return None
    name = reading.called(node)
    if name == "astype" and node.args and isinstance(node.func, ast.Attribute):
        inner, dtype = array_of(node.func.value, names), _dtype(reading.text(node.args[0]))
        return None if inner is None or dtype is None else Array(inner.shape, dtype)
    return made(node, names) if makes_array(node) else None


def makes_array(call: ast.Call) -> bool:
    """Whether it is one of numpy's functions that make an array of a shape."""
    return reading.called(call) in _MAKERS and reading.owner(call) in _OWNERS


def made(call: ast.Call, names: Names) -> Array | None:
    """The array that a call which ``makes_array`` makes; None where its shape or dtype cannot be read off."""
    name, given = reading.called(call), reading.words(call)
    position = 2 if name == "full" else 1
    typed = given.get("dtype") or (call.args[position] if name not in _RANDOM and len(call.args) > position else None)
    if name in ("rand", "randn"):
        found = [names.number(arg) for arg in call.args]
        shape = tuple(one for one in found if one is not None)
        shape_known = bool(shape) and len(shape) == len(found)
    else:
        asked = call.args[0] if call.args else given.get("shape") or given.get("size")
        shape, shape_known = names.shape(asked) or (), names.shape(asked) is not None
    dtype = "float64" if typed is None else _dtype(reading.text(typed))
    return Array(shape, dtype) if shape_known and dtype is not None else None


def elements_before(chain: Chain, position: int, names: Names, folder: Path) -> Elements:
    """What comes to a call of a chain.

    Args:
        chain: The chain.
        position: Of the call in it.
        names: Of the module.
        folder: Of the file, where a folder that it names may be.
    """
    found = Elements() if chain.root is None else elements_of(chain.root, names, folder)
    for call in chain.calls[:position]:
        found = _passed(found, call, names, folder)
    return found


def elements_of(node: ast.AST | None, names: Names, folder: Path) -> Elements:
    """What the pipeline that an expression stands for yields."""
    if isinstance(node, ast.Name):
        meant = names.meant(node)
        return Elements() if meant is None else elements_of(meant, names, folder)
    if not isinstance(node, ast.Call):
        return Elements()
    chain = reading.chain_of(node)
    return elements_before(chain, len(chain.calls), names, folder)


def by_words(call: ast.Call, names: Names) -> Elements:
    """What a data set of the user's own yields, by what it is called with."""
    given = reading.words(call)
    shape = next((names.shape(given[word]) for word in _SHAPES if word in given), None)
    dtype = _dtype(reading.text(given.get("dtype")))
    batch_size = names.number(given.get("batch_size"))
    if shape is None or len(shape) < 2:
        return Elements(is_batched=True, batch_size=batch_size)
    provisos = ["for each channel"] if len(shape) == 2 else []
    provisos += [] if dtype else ["if that is their dtype"]
    sample = Array(shape, dtype or "float32")
    return Elements(sample, is_batched=True, batch_size=batch_size, proviso=" and ".join(provisos))


def embeddings(tree: ast.Module, names: Names) -> Iterator[tuple[int, str]]:
    """Numbers of the weight of each Embedding, and its call in words: of layers, the one whose weights need no input shape."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and reading.called(call) == "Embedding":
            given = reading.words(call)
            asked = [*call.args[:2], *(given[word] for word in ("input_dim", "output_dim") if word in given)]
            shape = [names.number(one) for one in asked]
            if len(shape) == 2 and None not in shape:
                yield math.prod(one or 0 for one in shape), f"Embedding({shape[0]}, {shape[1]})"


def _passed(found: Elements, call: ast.Call, names: Names, folder: Path) -> Elements:
    """The elements after one more call."""
    name, given = reading.called(call), reading.words(call)
    if name in ("image_dataset_from_directory", "flow_from_directory"):
        return _images(call, names, folder)
    if name == "from_tensor_slices":
        return _slices(call, names)
    if name in _KEEP:
        return found
    if name == "map":
        return dataclasses.replace(found, proviso="as they are loaded, before map, which is not looked into")
    if name == "batch" and not found.is_batched:
        size = names.number(call.args[0] if call.args else given.get("batch_size"))
        return dataclasses.replace(found, is_batched=True, batch_size=size)
    if name == "batch":  # batches of batches
        return Elements(is_batched=True)
    if name == "unbatch":
        return dataclasses.replace(found, is_batched=False, batch_size=None)
    if name == "take":
        taken = found.samples_of(names.number(call.args[0] if call.args else given.get("count")))
        number = None if taken is None or taken < 0 or found.number is None else min(taken, found.number)
        return dataclasses.replace(found, number=number)
    if name in ("repeat", "skip", "filter", "shard"):
        return dataclasses.replace(found, number=None)
    return Elements(is_batched=found.is_batched)


def _images(call: ast.Call, names: Names, folder: Path) -> Elements:
    """Of Keras' two loaders of images, which give float32."""
    if len(call.args) > 1:  # nobody does; what is which is not told apart here
        return Elements(noun="image", is_batched=True)
    given, is_flow = reading.words(call), reading.called(call) == "flow_from_directory"
    size = given.get("target_size" if is_flow else "image_size")
    shape = (256, 256) if size is None else names.shape(size)
    channels = _CHANNELS.get("rgb" if "color_mode" not in given else str(names.value(given["color_mode"])))
    batched = not isinstance(given.get("batch_size"), ast.Constant) or names.value(given["batch_size"]) is not None
    batch_size = names.number(given["batch_size"]) if "batch_size" in given else 32
    known = shape is not None and len(shape) == 2 and channels is not None
    sample = Array((*shape, channels), "float32") if known and shape and channels else None
    number = None if is_flow else _number_of_images(call, given, names, folder)
    return Elements(sample, "image", number, batched, batch_size if batched else None)


def _number_of_images(call: ast.Call, given: dict[str, ast.expr], names: Names, folder: Path) -> int | None:
    directory = names.value(call.args[0] if call.args else given.get("directory"))
    labels = given.get("labels")
    if not isinstance(directory, str) or "class_names" in given:
        return None
    path = next((one for one in (Path(directory), folder / directory) if os.path.isdir(one)), None)
    number = None if path is None else _counted(path, labels is None or names.value(labels) == "inferred")
    if "validation_split" not in given or number is None:
        return number
    share, subset = names.value(given["validation_split"]), names.value(given.get("subset"))
    if not isinstance(share, float) or subset not in ("training", "validation"):
        return None
    return int(share * number) if subset == "validation" else number - int(share * number)


@functools.cache
def _counted(folder: Path, by_class: bool) -> int | None:
    """Images in a folder, or in the folders of classes in it; None where they cannot be counted, or not soon."""
    number = seen = 0
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder and by_class:
            files, folders[:] = [], [one for one in folders if not one.startswith(".")]
        seen += len(files) + len(folders)
        if seen > _MOST_FILES:
            return None
        number += sum(name.lower().endswith(_IMAGES) for name in files)
    return number or None


def _slices(call: ast.Call, names: Names) -> Elements:
    asked = call.args[0] if call.args else reading.words(call).get("tensors")
    first = asked.elts[0] if isinstance(asked, ast.Tuple) and asked.elts else asked
    array = array_of(first, names)
    if array is None or not array.shape:
        return Elements()
    return Elements(Array(array.shape[1:], array.dtype), "sample", array.shape[0])


def _dtype(name: Any) -> str | None:
    """numpy's name of a dtype; None where there is none of that name."""
    try:
        return np.dtype(name).name if name else None
    except (TypeError, ValueError, SyntaxError):
        return None
