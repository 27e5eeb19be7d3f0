"""``memfit.data.images_as_tf_data``: a folder of class folders as a ``tf.data`` pipeline that stays small."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from memfit import errors
from memfit.data import disk, folder_scan, image_cache, pipeline_options
from memfit.data.image_options import CHANNELS, ImageOptions
from memfit.data.progress import stderr_progress


def images_as_tf_data(
    directory: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] = (150, 150),
    batch_size: int = 32,
    color_mode: str = "rgb",
    shuffle: bool = True,
    seed: int | None = None,
    with_labels: bool = True,
    cache: str | None = None,
) -> Any:
    """The chain list - shuffle - read - decode - resize - cache - batch - prefetch, with labels from the folders' names.

    For those who want a ``tf.data.Dataset``; ``memfit.data.image_folder`` shuffles fully whatever is cached, skips
    broken files and needs no TensorFlow.

    Args:
        directory: Holds one sub-folder a class.
        image_size: (height, width).
        batch_size: Images of a batch.
        color_mode: "rgb", "grayscale" or "rgba".
        shuffle: Whether each epoch has a new order.
        seed: Makes the order repeatable.
        with_labels: Whether batches are ``(images, labels)``, int32 indices into ``class_names``, or images alone.
        cache: "memory", "disk", "auto" for the first of the two that has room, or None. As bytes, not as floats.

    Returns:
        A ``tf.data.Dataset`` of float32 images from 0 to 255, with ``class_names`` and ``file_paths``.

    Raises:
        ArgumentError: The directory or an option cannot work, or TensorFlow is not installed.
    """
    options = ImageOptions(image_size=image_size, batch_size=batch_size, color_mode=color_mode, cache=cache)
    if importlib.util.find_spec("tensorflow") is None:
        raise errors.ArgumentError(
            "`images_as_tf_data` needs TensorFlow, which is not installed. Use `memfit.data.image_folder`, which does not, "
            "or install memfit[tensorflow]."
        )
    found = folder_scan.scan(
        os.fspath(directory),
        without_classes=not with_labels,
        report=stderr_progress(f"listing the images in {directory}", "files"),
    ).files
    image_files = importlib.import_module("memfit.backends.on_tensorflow.image_files")
    paths = [found.path(index) for index in range(len(found))]
    height, width, channels = options.image_shape
    chain = image_files.ImageChain(
        image_size=(height, width),
        channels=CHANNELS[color_mode],
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        parallel_calls=pipeline_options.usable_cores(),
        cache=_cache(cache, len(found) * height * width * channels),
    )
    dataset = image_files.dataset(paths, found.labels if with_labels else None, chain)
    dataset.class_names = [name for name in found.folders if name]
    dataset.file_paths = paths
    return dataset


def _cache(wanted: str | None, num_bytes: int) -> str | None:
    """None, "" for memory, or a file prefix."""
    choice = image_cache.choose(wanted, num_bytes, room=image_cache.free_room(), disk_for=disk.roomy_folder)
    if choice.folder is not None:
        return str(disk.temporary_folder(choice.folder, "tf-data-") / "cache")
    return "" if choice.kind == "memory" else None
