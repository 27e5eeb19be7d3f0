"""Samples that come one at a time from something with a length: written into the rows of a batch as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memfit import errors
from memfit.data import structure
from memfit.data.broken_files import SkippedFile
from memfit.data.source import Draft, Source
from memfit.records import TensorSpec

Get = Callable[[Sequence[int]], Sequence[tuple[Any, ...]]]
"""From sample numbers to samples, each ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)`` of arrays."""

_AT_ONCE = 64
_COPIES = 4


class SampleSource(Source):
    """Samples of one shape and dtype.

    Args:
        num_samples: How many.
        get: Gives samples. Called from several threads where the pipeline has several.
        spec: Of one sample.
        name: What a sample is called in an error, from its number.
        held_bytes: What it holds beside.
        skipped: Files that were left out.
    """

    def __init__(
        self,
        num_samples: int,
        get: Get,
        *,
        spec: tuple[Any, ...],
        name: Callable[[int], str] = "sample {}".format,
        held_bytes: int = 0,
        skipped: tuple[SkippedFile, ...] = (),
    ) -> None:
        self.num_samples = num_samples
        self.spec = spec
        self._get = get
        self._name = name
        self._held_bytes = held_bytes
        self._skipped = skipped
        self._leaf_specs = structure.leaves(spec)
        largest = max(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in self._leaf_specs)
        self._at_once = max(1, min(_AT_ONCE, 2**20 // max(1, largest)))

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @property
    def reading_bytes(self) -> int:
        """Of a few samples as they are stored, parsed and decoded; what else ``get`` does is its own."""
        return _COPIES * self._at_once * self.sample_bytes + 2**20

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        return self._skipped

    def begin(self, samples: np.ndarray, *, seed: int, epoch: int) -> Draft:
        rows = [np.empty((len(samples), *leaf.shape), leaf.dtype) for leaf in self._leaf_specs]

        def read(start: int, stop: int) -> None:
            for first in range(start, stop, self._at_once):
                chosen = samples[first : min(stop, first + self._at_once)].tolist()
                for row, (number, sample) in enumerate(zip(chosen, self._get(chosen), strict=True), first):
                    self._write(sample, number, [out[row : row + 1] for out in rows])

        def finish() -> Any:
            left = iter(rows)
            batch = structure.mapped(lambda _: next(left), self.spec)
            return batch if len(batch) > 1 else batch[0]

        return Draft(read, finish)

    def _write(self, sample: tuple[Any, ...], number: int, rows: list[np.ndarray]) -> None:
        leaves = structure.leaves(sample)
        if len(leaves) != len(rows):
            raise errors.MemfitError(
                f"{self._name(number)} has {len(leaves)} parts, and the first sample {len(rows)}. Make them alike."
            )
        for leaf, out in zip(leaves, rows, strict=True):
            value = as_array(leaf)
            if value.shape != out.shape[1:]:
                raise errors.MemfitError(
                    f"{self._name(number)} has a part of shape {value.shape}, and the first sample {out.shape[1:]}: they "
                    "cannot be in one batch. Resize or pad them to one shape, in `transform` where the loader has one."
                )
            out[0] = value


def as_array(leaf: Any) -> np.ndarray:
    """A number, array, image, tensor or list of numbers as a numpy array.

    Raises:
        ArgumentError: It is a list of lists of different length.
    """
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
    try:
        return np.asarray(leaf)
    except ValueError as error:
        raise errors.ArgumentError(
            f"A part of a sample is no array: {error}. Received: a {type(leaf).__name__}. Pad or cut it to one shape in "
            "`transform`."
        ) from error


def spec_of(sample: tuple[Any, ...], floatx: str) -> tuple[Any, ...]:
    """The spec of samples like this one.

    Raises:
        ArgumentError: A part of it is no array of numbers.
    """

    def spec(leaf: Any) -> TensorSpec:
        value = as_array(leaf)
        if value.dtype.kind not in "fiub":
            raise errors.ArgumentError(
                f"A sample must be made of numbers. Received: {str(leaf)[:60]!r} of dtype {value.dtype}. "
                "Turn it into numbers in `transform`, or name the parts to use as `x` and `y`."
            )
        return TensorSpec(value.shape, floatx if value.dtype.kind == "f" else str(value.dtype))

    return structure.mapped(spec, sample)
