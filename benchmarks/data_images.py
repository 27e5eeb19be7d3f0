"""Images per second and memory of image pipelines, side by side in one interleaved run.

memfit's ``image_folder`` beside a hand-tuned ``tf.data`` chain, ``image_dataset_from_directory`` with Keras layers, Keras'
``ImageDataGenerator`` (and its translation by memfit), a torch DataLoader and Grain; with and without shear, zoom and flip;
with 1 and 2 workers. Every contender lives in a process of its own and makes one pass over the same JPEG files in turn, so
that what else the machine does hits all of them; ratios are medians of the ratios within a round. Beside wall time stands
processor time, which another job on the machine hardly touches: what a pipeline takes from the training.

Targets: at least 1.0 times hand-tuned ``tf.data`` without and 1.5 times with augmentation, 4 times ImageDataGenerator.

    python benchmarks/data_images.py [--images 400] [--rounds 5] [--workers 1 2] [--out FILE]

Prints a table and appends one JSON row a contender to ``benchmarks/results/data-images.jsonl``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SIZE, BATCH = (150, 150), 32
SHEAR, ZOOM = 11.0, 0.2

Passes = Callable[[], Iterable[Any]]


def memfit_folder(folder: str, workers: int, augment: bool) -> Passes:
    import memfit.data

    changes = memfit.data.Augmentation(shear_range=SHEAR, zoom_range=ZOOM, horizontal_flip=True) if augment else None
    data = memfit.data.image_folder(folder, image_size=SIZE, batch_size=BATCH, workers=workers, augmentation=changes)
    return lambda: data


def image_data_generator(folder: str, workers: int, augment: bool) -> Passes:
    iterator = _generator_iterator(folder, augment)

    def epoch() -> Iterable[Any]:
        iterator.on_epoch_end()
        with concurrent.futures.ThreadPoolExecutor(workers) as executor:
            yield from executor.map(iterator.__getitem__, range(len(iterator)))

    return epoch


def translated_generator(folder: str, workers: int, augment: bool) -> Passes:
    import memfit.data

    data = memfit.data.from_image_data_generator(_generator_iterator(folder, augment), workers=workers)
    return lambda: data


def _generator_iterator(folder: str, augment: bool) -> Any:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    changes = {"shear_range": SHEAR, "zoom_range": ZOOM, "horizontal_flip": True} if augment else {}
    return ImageDataGenerator(**changes).flow_from_directory(
        folder, target_size=SIZE, batch_size=BATCH, class_mode="sparse", interpolation="bilinear"
    )


def tuned_tf_data(folder: str, workers: int, augment: bool) -> Passes:
    """What a careful user writes: names shuffled, scaled decoding, one projective transform a batch, fixed threads."""
    import tensorflow as tf

    paths, labels = _files(folder)

    def load(path: Any, label: Any) -> Any:
        # The files are three times as large as wanted: libjpeg halves them while it decodes.
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=2)
        return tf.image.resize(image, SIZE), label

    def change(images: Any, labels: Any) -> Any:
        count = tf.shape(images)[0]
        shear = tf.random.uniform([count], -SHEAR, SHEAR) * (np.pi / 180)
        zx, zy = (tf.random.uniform([count], 1 - ZOOM, 1 + ZOOM) for _ in range(2))
        flip = tf.where(tf.random.uniform([count]) < 0.5, -1.0, 1.0)
        a, b, d = zx * flip, -tf.sin(shear) * zy, tf.cos(shear) * zy
        x, y = (SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2
        zero = tf.zeros([count])
        rows = tf.stack([a, b, x - a * x - b * y, zero, d, y - d * y, zero, zero], axis=1)
        images = tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=rows,
            output_shape=SIZE,
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )
        return images, labels

    data = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths))
    data = data.map(load, num_parallel_calls=workers).batch(BATCH)
    if augment:
        data = data.map(change, num_parallel_calls=workers)
    return _with_threads(data.prefetch(2), workers)


def keras_layers(folder: str, workers: int, augment: bool) -> Passes:
    import keras

    data = keras.utils.image_dataset_from_directory(folder, image_size=SIZE, batch_size=BATCH, verbose=False)
    if augment:
        # RandomShear takes a factor; that of the angle.
        changes = keras.Sequential(
            [
                keras.layers.RandomFlip("horizontal"),
                keras.layers.RandomZoom(ZOOM, ZOOM, fill_mode="nearest"),
                keras.layers.RandomShear(x_factor=float(np.tan(np.radians(SHEAR))), fill_mode="nearest"),
            ]
        )
        data = data.map(lambda images, labels: (changes(images, training=True), labels), num_parallel_calls=workers)
    return _with_threads(data.prefetch(2), workers)


def _with_threads(data: Any, workers: int) -> Passes:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    data = data.with_options(options)
    return lambda: data


def torch_loader(folder: str, workers: int, augment: bool) -> Passes:
    import torch

    paths, labels = _files(folder)

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(_by_pillow(paths[index], augment)), labels[index]

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Files(), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    return lambda: loader


def grain_threads(folder: str, workers: int, augment: bool) -> Passes:
    import grain

    paths, labels = _files(folder)
    data = grain.MapDataset.source(range(len(paths))).seed(0).shuffle()
    data = data.map(lambda index: (_by_pillow(paths[index], augment), labels[index])).batch(BATCH)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    return lambda: data.to_iter_dataset(options)


def _by_pillow(path: str, augment: bool) -> np.ndarray:
    """What a user of torch or Grain writes: Pillow, with its scaled decoding and one affine transform."""
    from PIL import Image

    with Image.open(path) as image:
        image.draft("RGB", SIZE[::-1])
        image = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR)
    if augment:
        shear, (zx, zy) = np.radians(random.uniform(-SHEAR, SHEAR)), np.random.uniform(1 - ZOOM, 1 + ZOOM, 2)
        a, b, d = zx * random.choice([-1, 1]), -np.sin(shear) * zy, np.cos(shear) * zy
        x, y = (SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2
        rows = (a, b, x - a * x - b * y, 0, d, y - d * y)
        image = image.transform(SIZE[::-1], Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def _files(folder: str) -> tuple[list[str], np.ndarray]:
    paths = sorted(str(path) for path in Path(folder).glob("*/*.jpg"))
    names = sorted({Path(path).parent.name for path in paths})
    return paths, np.array([names.index(Path(path).parent.name) for path in paths], np.int32)


CONTENDERS: dict[str, tuple[Callable[[str, int, bool], Passes], str]] = {
    "memfit": (memfit_folder, "jax"),
    "tf.data, hand-tuned": (tuned_tf_data, "tensorflow"),
    "image_dataset_from_directory": (keras_layers, "tensorflow"),
    "ImageDataGenerator": (image_data_generator, "jax"),
    "ImageDataGenerator, translated": (translated_generator, "jax"),
    "torch DataLoader": (torch_loader, "torch"),
    "Grain": (grain_threads, "jax"),
}
REFERENCE = "tf.data, hand-tuned"


def serve(name: str, folder: str, workers: int, augment: bool) -> None:
    """A child: one pass for each line of its input; answers with seconds, images and the peak of anonymous bytes."""
    answers, sys.stdout = sys.stdout, sys.stderr
    passes = CONTENDERS[name][0](folder, workers, augment)
    before = _anonymous_bytes(_processes())
    for _ in sys.stdin:
        peak = _Peak()
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        num_images = sum(len(np.asarray(batch[1])) for batch in passes())
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
        row = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "images": num_images,
            "grown_bytes": peak.stop() - before,
        }
        print(json.dumps(row), file=answers, flush=True)


class _Peak:
    """The most anonymous bytes of this process and its children, sampled."""

    def __init__(self) -> None:
        self._most = 0
        # Listed once, since looking for children costs as much as decoding some images; those of the first pass stay.
        self._processes = _processes()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(0.05):
            self._most = max(self._most, _anonymous_bytes(self._processes))

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return max(self._most, _anonymous_bytes(_processes()))


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _anonymous_bytes(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            # A forked child shares most of its anonymous pages: only what is its own counts.
            own = process.pid == os.getpid()
            memory = process.memory_info()
            total += memory.rss - memory.shared if own else process.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def _cpu_seconds() -> float:
    """Processor seconds of this process and its living children."""
    times = [process.cpu_times() for process in _processes()]
    return sum(each.user + each.system for each in times)


class Child:
    """A contender in a process of its own."""

    def __init__(self, name: str, folder: str, workers: int, augment: bool) -> None:
        self.name = name
        self.passes: list[dict[str, Any]] = []
        command = [sys.executable, __file__, "--serve", name, "--folder", folder, "--workers", str(workers)]
        self._process = subprocess.Popen(
            command + ["--augment"] * augment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "KERAS_BACKEND": CONTENDERS[name][1], "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("pass\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


def compared(folder: str, workers: int, augment: bool, rounds: int) -> list[dict[str, Any]]:
    """The rows of one setting: a round is one pass of each contender; the first, in which it warms up, does not count."""
    children = [
        Child(name, folder, workers, augment)
        for name in CONTENDERS
        if name != "Grain" or importlib.util.find_spec("grain") is not None
    ]
    for number in range(rounds + 1):
        for child in children:
            answer = child.ask()
            if number:
                child.passes.append(answer)
    for child in children:
        child.end()
    of = {child.name: child.passes for child in children}
    return [
        {
            "contender": name,
            "workers": workers,
            "augmentation": augment,
            "images_per_second": statistics.median(row["images"] / row["seconds"] for row in passes),
            "images_per_cpu_second": statistics.median(row["images"] / row["cpu_seconds"] for row in passes),
            "to_tf_data": _ratio(of[REFERENCE], passes, "seconds"),
            "to_image_data_generator": _ratio(of["ImageDataGenerator"], passes, "seconds"),
            "to_tf_data_cpu": _ratio(of[REFERENCE], passes, "cpu_seconds"),
            "to_image_data_generator_cpu": _ratio(of["ImageDataGenerator"], passes, "cpu_seconds"),
            "grown_mib": max(row["grown_bytes"] for row in passes) / 2**20,
            "rounds": rounds,
        }
        for name, passes in of.items()
    ]


def _ratio(reference: list[dict[str, Any]], passes: list[dict[str, Any]], what: str) -> float:
    return statistics.median(theirs[what] / mine[what] for theirs, mine in zip(reference, passes, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data-images.jsonl")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--augment", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder, options.workers[0], options.augment)
        return
    from memfit.data.synthetic_images import write_image_folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_image_folder(Path(scratch) / "images", num_images=options.images, image_size=(375, 500))
        for workers in options.workers:
            for augment in (False, True):
                rows = compared(str(folder), workers, augment, options.rounds)
                title = f"{workers} workers, {'shear + zoom + flip' if augment else 'no augmentation'}"
                print(
                    f"\n{title:<36} images/s  x tf.data  x generator | by cpu: images/s  x tf.data  x generator | MiB"
                )
                for row in rows:
                    print(
                        f"{row['contender']:<36} {row['images_per_second']:8.0f} {row['to_tf_data']:10.2f} "
                        f"{row['to_image_data_generator']:12.2f} {row['images_per_cpu_second']:18.0f} "
                        f"{row['to_tf_data_cpu']:10.2f} {row['to_image_data_generator_cpu']:12.2f} "
                        f"{row['grown_mib']:8.0f}",
                        flush=True,
                    )
                with options.out.open("a") as out:
                    for row in rows:
                        about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "images": options.images}
                        out.write(json.dumps({**about, **row}) + "\n")


if __name__ == "__main__":
    main()
