"""Decoded images kept for the next epoch: in memory where they fit, on disk where that has room, or not at all.

On disk they are one ``pixels.npy`` that anything which reads NumPy's format can read, and ``index.json`` that says what it
holds. It is written under another name while the first epoch runs and gets its own when it is whole, so that a run that was
killed leaves nothing that looks like a cache. Its name is a hash of the files' paths, sizes and times and of how they are
decoded: the next run finds it as long as none of them has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memfit import errors
from memfit.budgeting import host
from memfit.data import disk, mapped_rows
from memfit.data.file_table import FileTable
from memfit.data.image_decoding import ImageReader
from memfit.units import text

_SHARE_OF_FREE = 0.25

_BLOCK_BYTES = 8 * 2**20
"""Of a block of a cache in memory: what is given back at once, and a part of the address space of its own."""


class Cache(Protocol):
    """Keeps the pixels of samples. Safe to use from several threads.

    Attributes:
        kind: "memory" or "disk".
    """

    kind: str

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that it takes now; pages of files do not count."""

    @property
    def growing_bytes(self) -> int:
        """Bytes of memory that it takes in addition when it is full."""

    @property
    def is_begun(self) -> bool:
        """Whether there is something in it."""

    def pixels(self, sample: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """A sample's pixels, decoded at the first call."""

    def give_back(self, num_bytes: int) -> int:
        """Gives back memory, so many bytes where it holds that much, and takes no more; returns the bytes."""

    def fill_again(self) -> None:
        """Memory may be taken again."""


@dataclasses.dataclass(frozen=True)
class CacheChoice:
    """Which cache, and why.

    Attributes:
        kind: "memory", "disk" or None.
        reason: For the user.
        folder: Where one on disk lies.
    """

    kind: str | None
    reason: str
    folder: Path | None = None


def choose(wanted: str | None, num_bytes: int, *, room: int, disk_for: Callable[[int], Any]) -> CacheChoice:
    """Where decoded images are kept.

    Args:
        wanted: What the user asked for: "auto", "memory", "disk" or None.
        num_bytes: Bytes of all decoded images.
        room: Bytes of memory that they may take.
        disk_for: A folder with room for so many bytes, or None, and a part of a sentence about it.

    Raises:
        ArgumentError: "memory" or "disk" was asked for by name and there is no room.

    Example:
        >>> choose("auto", 100, room=200, disk_for=lambda size: (None, "")).kind
        'memory'
    """
    if wanted is None:
        return CacheChoice(None, "no cache was asked for")
    size = f"the decoded images take {text(num_bytes)}"
    memory = f"{text(room)} of memory may be used for them"
    if wanted in ("auto", "memory") and num_bytes <= room:
        return CacheChoice("memory", f"cache in memory: {size}, and {memory}")
    folder, about_disk = disk_for(num_bytes) if wanted in ("auto", "disk") else (None, "")
    if folder is not None:
        return CacheChoice("disk", f"cache on disk: {size}, {memory}, and {about_disk}", folder)
    if wanted == "auto":
        return CacheChoice(None, f"no cache: {size}, {memory}, and {about_disk}")
    raise errors.ArgumentError(
        f"There is no room for the cache: {size}, and {memory if wanted == 'memory' else about_disk}. "
        f'Received: cache={wanted!r}. Pass cache="auto" to keep them where there is room, or a smaller `image_size`.'
    )


def free_room() -> int:
    """Bytes that a cache may take where no budget says: a share of the free memory, because the rest is the training's."""
    return int(_SHARE_OF_FREE * host.free_bytes())


def chosen(wanted: str | None, files: FileTable, reader: ImageReader, *, room: int) -> CacheChoice:
    """Which cache some images get where ``room`` bytes of memory may be used; raises as ``choose`` does."""
    num_bytes = len(files) * math.prod(reader.options.image_shape)
    return choose(wanted, num_bytes, room=room, disk_for=disk.roomy_folder)


def made(choice: CacheChoice, files: FileTable, reader: ImageReader) -> tuple[Cache | None, str]:
    """The cache that was chosen for the images of some files, and the reason for it."""
    shape = (len(files), *reader.options.image_shape)
    if choice.kind == "memory":
        return MemoryCache(shape), choice.reason
    if choice.folder is not None:
        name = "images-" + fingerprint(files, reader)
        try:
            return DiskCache(choice.folder / name, shape, about=_about(reader)), choice.reason
        except OSError as error:
            return None, f"no cache: {choice.folder} cannot hold one ({error.strerror})"
    return None, choice.reason


class MemoryCache:
    """Pixels in blocks of some MiB, whose pages the system hands out as they are filled.

    Where memory runs short blocks are given back, and what was in them is decoded again; it is not filled any further then,
    until ``fill_again``. A copy for another process begins empty.

    Args:
        shape: (num_samples, height, width, channels).
    """

    kind = "memory"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._sample_bytes = math.prod(shape[1:])
        self._rows = max(1, _BLOCK_BYTES // max(1, self._sample_bytes))
        self._blocks: list[np.ndarray | None] = [None] * -(-shape[0] // self._rows)
        self._filled = np.zeros(shape[0], bool)
        self._fills = True
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int, ...]:
        return self._shape

    def __setstate__(self, shape: tuple[int, ...]) -> None:
        self.__init__(shape)  # type: ignore[misc]

    @property
    def held_bytes(self) -> int:
        return int(self._filled.sum()) * self._sample_bytes + self._filled.nbytes

    @property
    def growing_bytes(self) -> int:
        return math.prod(self._shape) + self._filled.nbytes - self.held_bytes if self._fills else 0

    @property
    def is_begun(self) -> bool:
        return bool(self._filled.any())

    def pixels(self, sample: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        number, row = divmod(sample, self._rows)
        # Both are asked for without the lock: a block that is given back does not come again while anybody reads.
        block = self._blocks[number]
        if block is not None and self._filled[sample]:
            return block[row]
        pixels = decode()
        with self._lock:
            if self._fills:
                self._block(number)[row] = pixels
                self._filled[sample] = True
        return pixels

    def give_back(self, num_bytes: int) -> int:
        """Gives blocks back until so many bytes are free, the last ones first; returns the bytes of the samples in them."""
        freed = 0
        with self._lock:
            self._fills = False
            for number in reversed(range(len(self._blocks))):
                if freed >= num_bytes:
                    break
                rows = slice(number * self._rows, (number + 1) * self._rows)
                freed += int(self._filled[rows].sum()) * self._sample_bytes
                self._blocks[number] = None
                self._filled[rows] = False
        return freed

    def fill_again(self) -> None:
        """From here on what is decoded is kept again."""
        self._fills = True

    def _block(self, number: int) -> np.ndarray:
        block = self._blocks[number]
        if block is None:
            rows = min(self._rows, self._shape[0] - number * self._rows)
            block = self._blocks[number] = np.empty((rows, *self._shape[1:]), np.uint8)
        return block


class DiskCache:
    """Pixels in a memory-mapped ``.npy`` file, whose pages the system may drop whenever it needs memory.

    Args:
        folder: Where the finished cache lies; one that is whole is used as it is.
        shape: (num_samples, height, width, channels).
        about: What goes into the index beside the shape.
    """

    kind = "disk"
    growing_bytes = 0

    def __init__(self, folder: Path, shape: tuple[int, ...], *, about: dict[str, Any]) -> None:
        self._folder = folder
        self._shape = shape
        self._about = about
        self._lock = threading.Lock()
        self._filled: np.ndarray | None = None
        self.reused = self._is_whole()
        if self.reused:
            self._pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        else:
            self._begin()
        self._asked = mapped_rows.of(self._pixels)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder, "shape": self._shape, "about": self._about}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["shape"], about=state["about"])  # type: ignore[misc]

    @property
    def held_bytes(self) -> int:
        return 0 if self._filled is None else self._filled.nbytes

    @property
    def is_begun(self) -> bool:
        return self._filled is None or self._num_left < self._shape[0]

    def pixels(self, sample: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        filled = self._filled
        if filled is None or filled[sample]:
            if self._asked is not None:
                self._asked.ask(np.array([sample]))
            return self._pixels[sample]
        pixels = decode()
        self._pixels[sample] = pixels
        with self._lock:
            if not filled[sample]:
                filled[sample] = True
                self._num_left -= 1
                if self._num_left == 0:
                    self._finish()
        return pixels

    def give_back(self, num_bytes: int) -> int:
        """Nothing: the system drops pages of a file by itself."""
        return 0

    def fill_again(self) -> None:
        """Nothing was stopped."""

    def _is_whole(self) -> bool:
        """Whether the folder holds a finished cache of this shape; anything else does not count."""
        try:
            index = json.loads((self._folder / "index.json").read_text())
            size = (self._folder / "pixels.npy").stat().st_size
        except (OSError, ValueError):
            return False
        return index.get("shape") == list(self._shape) and size > math.prod(self._shape)

    def _begin(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self._folder.parent)
        # With the process in its name: another run that makes the same cache makes its own.
        self._part = disk.temporary_folder(self._folder.parent, f"{self._folder.name}.part-{os.getpid()}-")
        self._pixels = np.lib.format.open_memmap(
            self._part / "pixels.npy", mode="w+", dtype=np.uint8, shape=self._shape
        )
        # All of it now: a page that finds the disk full when it is written kills the process.
        if hasattr(os, "posix_fallocate"):
            with (self._part / "pixels.npy").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, self._pixels.offset + self._pixels.nbytes)
        self._filled = np.zeros(self._shape[0], bool)
        self._num_left = self._shape[0]
        weakref.finalize(self, disk.remove, self._part)

    def _finish(self) -> None:
        self._pixels.flush()
        index = {"shape": list(self._shape), "dtype": "uint8", **self._about}
        (self._part / "index.json").write_text(json.dumps(index, indent=1))
        # Another run may have been faster; then its cache stays and this one's pages go with the process.
        if not self._is_whole():
            disk.remove(self._folder)
        with contextlib.suppress(OSError):
            self._part.rename(self._folder)
        self._filled = None


def fingerprint(files: FileTable, reader: ImageReader) -> str:
    """A hash of the files, as they are now, and of how they are decoded."""
    digest = hashlib.sha256(json.dumps(_about(reader), sort_keys=True).encode())
    for index in range(len(files)):
        path = os.path.abspath(files.path(index))
        with contextlib.suppress(OSError):
            status = os.stat(path)
            digest.update(os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()[:24]


def _about(reader: ImageReader) -> dict[str, Any]:
    options = reader.options
    return {
        "image_size": list(options.image_size),
        "color_mode": options.color_mode,
        "interpolation": options.interpolation,
        "decoder": reader.engine,
    }


def _remove_abandoned(parent: Path) -> None:
    """Deletes what processes that are gone have left unfinished."""
    for folder in parent.glob("images-*.part-*"):
        process = folder.name.partition(".part-")[2].split("-")[0]
        if process.isdigit() and not disk.is_alive(int(process)):
            disk.remove(folder)
