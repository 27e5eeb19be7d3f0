"""``memfit.data.image_folder``: a folder of class folders as a data set whose memory does not grow with it."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from memfit import errors
from memfit.backends import host_allocator
from memfit.data import folder_scan, image_masks, pipeline_options, scan_cache, shuffling
from memfit.data.augmentation import Augmentation
from memfit.data.broken_files import BrokenFiles, SkippedFile
from memfit.data.file_table import FileTable
from memfit.data.folder_scan import FolderScan
from memfit.data.image_decoding import ImageReader, UnreadableImageError
from memfit.data.image_options import ImageOptions
from memfit.data.pipeline_options import Division
from memfit.data.progress import stderr_progress

NUM_SURVEYED = 32

_MANY_FILES = 10_000


def image_folder(
    directory: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] = (150, 150),
    batch_size: int = 32,
    label_mode: str | None = "int",
    color_mode: str = "rgb",
    class_names: Sequence[str] | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    rescale: float | None = None,
    interpolation: str = "bilinear",
    workers: int | None = None,
    max_queue_size: int = 2,
    max_queue_bytes: int | str = pipeline_options.QUEUE_BYTES,
    max_broken: int | None = None,
    follow_links: bool = False,
    masks: str | os.PathLike[str] | None = None,
    mask_values: Sequence[int] | None = None,
    augmentation: Any = None,
    cache: str | None = None,
) -> Any:
    """Images in class folders as a data set for ``fit``, ``evaluate`` and ``predict`` on every Keras backend.

    Images are decoded while they are needed, so that memory holds a few batches (``peak_bytes`` says how much) and less
    than 0.1 KB a file, however large the folder is. JPEG, PNG, WebP, BMP and GIF (first frame) are read; EXIF
    orientation is ignored, as in Keras. Large images are averaged while they shrink, not sampled as by
    ``image_dataset_from_directory``.

    A file that cannot be read is skipped with one warning that names it. Another image of its class, always the same
    one, takes its place, so that every batch keeps its shape.

    Args:
        directory: Holds one sub-folder a class: ``train/cats/1.jpg``, ``train/dogs/2.jpg``. Folders below are searched;
            names that start with a dot are left out.
        image_size: (height, width) that every image is resized to, its aspect ratio not kept.
        batch_size: Images of a batch. The last one of an epoch has the rest.
        label_mode: "int": int32 for ``sparse_categorical_crossentropy``; "categorical": one-hot float32; "binary": 0.0
            or 1.0 for exactly two classes, shape (batch_size, 1); None: images only, which may lie in ``directory``
            itself.
        color_mode: "rgb", "grayscale" or "rgba".
        class_names: The sub-folders to use, in the order of the labels. All, sorted, if left out.
        shuffle: Whether every epoch takes the images in a new order, a permutation of all of them. The validation
            subset is never shuffled: predictions line up with its ``labels`` and ``file_paths``.
        seed: Makes the order of every epoch and the split repeatable. If left out the order is drawn from Python's
            ``random``, so that ``keras.utils.set_random_seed`` fixes it, and the split is always the same one.
        validation_split: Share of every class to set aside for validation, between 0 and 1.
        subset: "training", "validation", or "both" for a tuple of the two; needed with ``validation_split``.
        rescale: Factor for the values, such as ``1 / 255``. If left out they are float32 from 0 to 255, as
            ``image_dataset_from_directory`` gives them and as ``keras.applications`` want them.
        interpolation: "bilinear", "nearest" or "bicubic".
        workers: Threads that decode; the result does not depend on it. One a core, eight at most, if left out.
        max_queue_size: Batches decoded ahead. More of them smooth a slow disk and take memory.
        max_queue_bytes: Bytes of batches ahead, such as "512 MiB": fewer batches are made ahead where they are large.
        max_broken: More unreadable files than this are an error. If left out training goes on while one can be read.
        follow_links: Whether to go into linked folders below the class folders.
        masks: Folder of segmentation masks, which take the place of labels: uint8, shape (batch_size, height, width, 1).
            ``photos/a/1.jpg`` has its mask in ``masks/a/1.png``; the images may lie in ``directory`` itself. Masks are
            resized without new values and augmented with their images. An image without a mask is left out.
        mask_values: The value that each class has in the masks, such as (0, 255). Left out, the values are the classes.
        augmentation: A ``memfit.data.Augmentation`` for each image, or a Keras preprocessing layer, a model of them, or a
            function for each batch: float32 images in, images out. Validation data is not changed at random.
        cache: Whether decoded images, as bytes and before any augmentation, are kept for the next epoch: "memory", "disk"
            (for the next run, too), "auto" for the first of the two that has room, or none; ``cache_reason`` says which.

    Returns:
        A ``keras.utils.PyDataset`` with ``class_names``, ``class_indices``, ``num_samples``, ``num_batches``,
        ``batch_size``, ``file_paths``, ``labels``, ``skipped``, ``seed``, ``epoch`` and ``peak_bytes``; two of them for
        ``subset="both"``.

    Raises:
        ArgumentError: An argument cannot work. Raised before anything is trained, and before Keras is imported.
        MemfitError: More files than ``max_broken`` cannot be read, or none can.

    Example:
        >>> import tempfile
        >>> from memfit.data.synthetic_images import write_image_folder
        >>> folder = write_image_folder(tempfile.mkdtemp(), num_images=20, num_classes=2)
        >>> training, validation = image_folder(
        ...     folder, image_size=(64, 64), batch_size=8, validation_split=0.2, subset="both", rescale=1 / 255
        ... )
        >>> training.class_names, training.num_samples, validation.num_samples
        (['checkerboards', 'circles'], 16, 4)
        >>> images, labels = training[0]
        >>> images.shape, str(images.dtype), labels.shape
        ((8, 64, 64, 3), 'float32', (8,))
    """
    options = ImageOptions(
        image_size=image_size,
        batch_size=batch_size,
        label_mode=label_mode,
        color_mode=color_mode,
        interpolation=interpolation,
        rescale=rescale,
        shuffle=bool(shuffle),
        seed=pipeline_options.seed_or_drawn(seed),
        workers=min(8, pipeline_options.usable_cores()) if workers is None else workers,
        max_queue_size=max_queue_size,
        max_queue_bytes=max_queue_bytes,  # type: ignore[arg-type]
        max_broken=max_broken,
        augmentation=augmentation,
        cache=cache,
        mask_values=None if mask_values is None else tuple(mask_values),
    )
    check_masks(options, masks)
    division = Division(validation_split, subset, seed)
    path = _directory(directory)
    without_classes = label_mode is None or masks is not None

    def scan() -> FolderScan:
        return folder_scan.scan(
            path,
            class_names=class_names,
            without_classes=without_classes,
            follow_links=follow_links,
            report=stderr_progress(f"listing the images in {directory}", "files"),
        )

    # A linked folder may change without its parent's knowing.
    way = (None if class_names is None else tuple(class_names), without_classes)
    found = scan() if follow_links or not os.path.isdir(path) else scan_cache.scanned(path, way, scan)
    if masks is None:
        _check_classes(found.files, label_mode, named=class_names is not None)
    else:
        found = _with_masks(found, masks)
    return datasets(found, options, division)


def datasets(found: FolderScan, options: ImageOptions, division: Division) -> Any:
    """The data set of the files that were found, or the two of them that were asked for.

    Raises:
        ArgumentError: A subset would be empty.
        MemfitError: Too many files cannot be read, or none can.
    """
    reader = ImageReader(options)
    largest = np.argsort(found.sizes)[-NUM_SURVEYED:]
    reader.survey(found.files.path(int(index)) for index in largest)
    if len(found.files) > _MANY_FILES:  # The C library would keep what listing them took.
        host_allocator.trim()
    for file in found.skipped:
        warnings.warn(f"memfit skips {file.path}: {file.reason}", stacklevel=3)
    parts = _parts(found.files, options, division)
    broken = [_first_read(files, reader, found.skipped) for files, _ in parts]

    from memfit.data.image_dataset import ImageFolder, ImageSource  # Imports Keras, which takes seconds: last.

    made = tuple(
        ImageFolder(ImageSource(files, part_options, reader, ledger), part_options)
        for (files, part_options), ledger in zip(parts, broken, strict=True)
    )
    return made if division.subset == "both" else made[0]


def check_masks(options: ImageOptions, masks: Any) -> None:
    """Raises ArgumentError where masks could not follow their images."""
    batches_change = options.augmentation is not None and not isinstance(options.augmentation, Augmentation)
    if masks is not None and batches_change:
        raise errors.ArgumentError(
            "Masks follow their images in a memfit.data.Augmentation only. "
            f"Received: augmentation={options.augmentation!r:.100} beside masks."
        )
    if masks is None and options.mask_values is not None:
        raise errors.ArgumentError(f"`mask_values` needs masks. Received: mask_values={options.mask_values}, no masks.")


def _with_masks(found: FolderScan, masks: str | os.PathLike[str]) -> FolderScan:
    report = stderr_progress(f"looking for masks in {masks}", "files")
    chosen, table, without = image_masks.beside(found.files, masks, report)
    files = image_masks.with_masks(found.files.take(chosen), table)
    return FolderScan(files, found.sizes[chosen], (*found.skipped, *without))


def _directory(directory: str | os.PathLike[str]) -> str:
    try:
        path = os.fspath(directory)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise errors.ArgumentError(f"`directory` must be a path. Received: directory={directory!r}")
    return path


def _check_classes(files: FileTable, label_mode: str | None, *, named: bool) -> None:
    """Checks what only the folder can tell: whether its classes suit the labels.

    One class, or one without images, is an error where the user did not name the classes: named, they are meant.
    """
    if label_mode is None:
        return
    names = list(files.folders)
    if label_mode == "binary" and len(names) != 2:
        raise errors.ArgumentError(
            f'`label_mode="binary"` needs exactly two classes. Received: {files.directory!r} with {len(names)}: '
            f'{names[:10]}. Choose two with `class_names`, or use "int" or "categorical".'
        )
    if len(names) == 1:
        _doubt(
            f"There is a single class in {files.directory!r}: {names}. A classifier has nothing to learn from it. "
            "Was a folder above or below meant?",
            named=named,
        )
    counts = np.bincount(files.labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if empty:
        _doubt(
            f"There are no images in {len(empty)} class folders of {files.directory!r}: {empty[:10]}.",
            named=named,
        )


def _doubt(message: str, *, named: bool) -> None:
    if not named:
        raise errors.ArgumentError(
            f"{message} Pass `class_names` to say which classes there are, or remove the folders."
        )
    warnings.warn(f"memfit: {message}", stacklevel=4)


def _parts(files: FileTable, options: ImageOptions, division: Division) -> list[tuple[FileTable, ImageOptions]]:
    """The subsets that were asked for, with the options of each."""
    if division.validation_split is None:
        return [(files, options)]
    training, validation = shuffling.split(
        files.labels, validation_split=division.validation_split, seed=division.seed_of_split
    )
    division.check(training.size, validation.size)
    # Nothing learns from the order of validation samples, and in a fixed one predictions match labels.
    parts = {
        "training": (files.take(training), options),
        "validation": (files.take(validation), _for_validation(options)),
    }
    return list(parts.values()) if division.subset == "both" else [parts[str(division.subset)]]


def _for_validation(options: ImageOptions) -> ImageOptions:
    augmentation = options.augmentation
    if isinstance(augmentation, Augmentation):
        augmentation = augmentation.without_randomness
    return dataclasses.replace(options, shuffle=False, augmentation=augmentation, training=False)


def _first_read(files: FileTable, reader: ImageReader, skipped: tuple[SkippedFile, ...]) -> BrokenFiles:
    """Reads up to the first healthy file, so that a folder with none is an error now and not in training."""
    broken = BrokenFiles(len(files), skipped, reader.options.max_broken)
    row = np.empty(reader.options.image_shape, np.float32)
    for index in range(len(files)):
        try:
            reader.read(files.path(index), row)
            break
        except UnreadableImageError as error:
            broken.add(index, SkippedFile(files.path(index), str(error)))
    broken.warn()
    return broken
