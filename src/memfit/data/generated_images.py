"""Sources made from ``ImageDataGenerator``'s iterators. Imports Keras: only imported when one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from memfit.data import structure
from memfit.data.broken_files import BrokenFiles
from memfit.data.file_table import FileTable
from memfit.data.image_dataset import ImageSource
from memfit.data.image_decoding import ImageReader
from memfit.data.image_options import ImageOptions
from memfit.records import TensorSpec

BatchOf = Callable[[np.ndarray, np.ndarray], Any]


class GeneratedFiles(ImageSource):
    """Images of a list of files, with the labels of a Keras iterator.

    Args:
        files: What to read.
        options: How to read it.
        labels: Makes a batch of images and the samples that they are.
        class_indices: The label of each class name.
    """

    def __init__(
        self, files: FileTable, options: ImageOptions, *, labels: BatchOf, class_indices: Mapping[str, int]
    ) -> None:
        super().__init__(files, options, ImageReader(options), BrokenFiles(len(files)))
        self.class_names = list(class_indices)
        self._batch_of = labels
        one = labels(np.zeros((1, *options.image_shape), np.float32), np.zeros(1, np.int64))
        batch = one if isinstance(one, tuple) else (one,)
        self.spec = structure.mapped(lambda leaf: TensorSpec(leaf.shape[1:], str(leaf.dtype)), batch)

    def _batch(self, images: np.ndarray, samples: np.ndarray) -> Any:
        return self._batch_of(images, samples)


class GeneratedArrays(GeneratedFiles):
    """Images of an array, with the labels of a Keras iterator.

    Args:
        images: float32, shape (num_images, height, width, channels); not copied.
        options: What to do with them.
        labels: Makes a batch of images and the samples that they are.
    """

    def __init__(self, images: np.ndarray, options: ImageOptions, *, labels: BatchOf) -> None:
        files = FileTable("", ("",), ("" for _ in images), np.zeros(len(images), np.int32))
        super().__init__(files, options, labels=labels, class_indices={})
        self._images = images

    def _pixels(self, sample: int) -> np.ndarray:
        return self._images[sample]
