"""Existing ``ImageDataGenerator`` code at memfit's speed: its iterators translated into data sets of the same distribution.

The files, their order, their classes, the batch size, the size and colours of the images, the labels and all ranges of the
random changes are taken from the iterator; which random numbers are drawn is not, so single images differ and their
distribution does not. ``tests/contract/test_image_generator.py`` compares fixed changes pixel by pixel.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from memfit import errors
from memfit.backends import keras_images
from memfit.backends.keras_images import LegacyIterator
from memfit.data import pipeline_options
from memfit.data.augmentation import Augmentation
from memfit.data.file_table import FileTable
from memfit.data.folder_scan import EXTENSIONS
from memfit.data.image_options import CHANNELS, INTERPOLATIONS, ImageOptions

_LABELS = ("categorical", "binary", "sparse", "input", "multi_output", "raw", None)


def from_image_data_generator(iterator: Any, *, workers: int | None = None) -> Any:
    """The data set that gives what ``datagen.flow_from_directory(...)`` gives, faster and in bounded memory.

    Args:
        iterator: What ``flow_from_directory``, ``flow_from_dataframe`` or ``flow`` of Keras' ``ImageDataGenerator`` returned.
        workers: Threads; the result does not depend on it. One a core, eight at most, if left out.

    Returns:
        A ``keras.utils.PyDataset`` like that of ``memfit.data.image_folder``, with the iterator's ``class_indices``.

    Raises:
        ArgumentError: ``iterator`` is no such iterator, or does what memfit does not; the text says what.
    """
    if not keras_images.is_legacy_iterator(iterator):
        raise errors.ArgumentError(
            "`iterator` must be what `flow_from_directory`, `flow_from_dataframe` or `flow` of an ImageDataGenerator "
            f"returned. Received: a {type(iterator).__name__}"
        )
    dataset, reason = translated(iterator, workers=workers)
    if dataset is None:
        raise errors.ArgumentError(f"The iterator cannot be translated: {reason}. Train on it as it is.")
    return dataset


def translated(data: Any, *, workers: int | None = None) -> tuple[Any | None, str]:
    """``from_image_data_generator`` for whatever a user passes to ``fit``.

    Returns:
        The data set to train on and a sentence for the user, or None and why ``data`` is left as it is.
    """
    if not keras_images.is_legacy_iterator(data):
        return None, f"a {type(data).__name__} is not an iterator of ImageDataGenerator"
    found = keras_images.described(data)
    reason = _untranslatable(found)
    if reason is not None:
        return None, reason
    made = _from_arrays(found, workers) if found.kind == "NumpyArrayIterator" else _from_files(found, workers)
    return made, (
        f"images of {found.kind} are read by memfit.data, with the same files, labels, sizes and distribution of changes"
    )


def _untranslatable(found: LegacyIterator) -> str | None:
    """What memfit would do otherwise than the iterator, or None."""
    iterator = found.iterator
    if found.changed is not None:
        return found.changed
    reasons = {
        "save_to_dir writes the changed images to disk": getattr(iterator, "save_to_dir", None) is not None,
        "channels_first images": iterator.data_format != "channels_last",
        f"dtype {iterator.dtype!r} instead of 'float32'": str(iterator.dtype) != "float32",
        "there are no images": iterator.n == 0,
    }
    if found.kind == "NumpyArrayIterator":
        channels = iterator.x.shape[-1]
        reasons[f"images of {channels} channels"] = channels not in CHANNELS.values()
    else:
        reasons |= {
            "keep_aspect_ratio crops the images": bool(iterator.keep_aspect_ratio),
            f"interpolation {iterator.interpolation!r}": iterator.interpolation not in INTERPOLATIONS,
            f"class_mode {iterator.class_mode!r}": iterator.class_mode not in _LABELS,
            "files of other formats than " + ", ".join(sorted(EXTENSIONS)): any(
                os.path.splitext(path)[1].lower() not in EXTENSIONS for path in iterator.filenames
            ),
        }
    for reason, holds in reasons.items():
        if holds:
            return reason
    try:
        missing = _augmentation(found).missing
    except errors.ArgumentError as error:
        return str(error)
    return None if missing is None else "featurewise statistics are missing: ImageDataGenerator.fit was not called"


def _augmentation(found: LegacyIterator) -> Augmentation:
    given = dict(found.transform)
    # Keras goes on without statistics that it does not have, after a warning; that is not worth translating.
    return Augmentation(**given, axes_of_keras=True)


def _options(found: LegacyIterator, image_size: tuple[int, int], workers: int | None, **more: Any) -> ImageOptions:
    iterator = found.iterator
    return ImageOptions(
        image_size=image_size,
        batch_size=iterator.batch_size,
        label_mode=None,
        shuffle=bool(iterator.shuffle),
        seed=pipeline_options.seed_or_drawn(None if iterator.seed is None else int(iterator.seed)),
        workers=min(8, pipeline_options.usable_cores()) if workers is None else workers,
        augmentation=_augmentation(found),
        **more,
    )


def _from_files(found: LegacyIterator, workers: int | None) -> Any:
    from memfit.data.generated_images import GeneratedFiles
    from memfit.data.image_dataset import ImageFolder

    iterator = found.iterator
    options = _options(
        found,
        iterator.target_size,
        workers,
        color_mode=iterator.color_mode,
        interpolation=iterator.interpolation,
    )
    if found.kind == "DirectoryIterator":
        folders = tuple(iterator.class_indices) or ("",)
        names = [
            os.path.relpath(name, folders[label])
            for name, label in zip(iterator.filenames, iterator.classes, strict=True)
        ]
        files = FileTable(os.fspath(iterator.directory), folders, names, iterator.classes)
    else:
        files = FileTable("", ("",), iterator.filepaths, np.zeros(iterator.n, np.int32))
    class_indices = getattr(iterator, "class_indices", {})
    source = GeneratedFiles(files, options, labels=_Labels(iterator), class_indices=class_indices)
    return ImageFolder(source, options)


def _from_arrays(found: LegacyIterator, workers: int | None) -> Any:
    from memfit.data.generated_images import GeneratedArrays
    from memfit.data.image_dataset import ImageFolder

    iterator = found.iterator
    colors = {channels: name for name, channels in CHANNELS.items()}
    options = _options(found, iterator.x.shape[1:3], workers, color_mode=colors[iterator.x.shape[-1]])
    return ImageFolder(GeneratedArrays(iterator.x, options, labels=_ArrayLabels(iterator)), options)


class _Labels:
    """The batch around the images of a file iterator, for each of its class modes."""

    def __init__(self, iterator: Any) -> None:
        self._mode = iterator.class_mode
        self._num_classes = len(getattr(iterator, "class_indices", ()))
        self._labels: Any = None if self._mode in ("input", None) else iterator.labels
        self._weights = iterator.sample_weight

    def __call__(self, images: np.ndarray, samples: np.ndarray) -> Any:
        """``(images, labels)`` or ``(images, labels, weights)``, or ``images`` alone, as Keras gives them."""
        match self._mode:
            case None:
                return images
            case "input":
                labels: Any = images.copy()
            case "categorical":
                labels = np.zeros((len(samples), self._num_classes), np.float32)
                for row, sample in enumerate(samples):
                    labels[row, self._labels[sample]] = 1
            case "multi_output":
                labels = [output[samples] for output in self._labels]
            case "raw":
                labels = self._labels[samples]
            case _:
                labels = np.asarray([self._labels[sample] for sample in samples], np.float32)
        return (images, labels) if self._weights is None else (images, labels, self._weights[samples])


class _ArrayLabels:
    """The batch around the images of an array iterator."""

    def __init__(self, iterator: Any) -> None:
        self._others, self._y, self._weights = iterator.x_misc, iterator.y, iterator.sample_weight

    def __call__(self, images: np.ndarray, samples: np.ndarray) -> Any:
        inputs = [images, *(other[samples] for other in self._others)] if self._others else images
        if self._y is None:
            return inputs
        rest = () if self._weights is None else (self._weights[samples],)
        return (inputs, self._y[samples], *rest)
