"""``memfit demo``: plain Keras is killed, memfit finishes, under the same memory cap, on this machine."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pathlib
import signal
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType

from memfit.cli import demo_report, demo_runs
from memfit.cli.demo_progress import Display, display
from memfit.cli.demo_training import MODELS, VALIDATION_SPLIT, WAYS, Task
from memfit.cli.option_types import num_bytes, positive
from memfit.errors import ArgumentError, MemfitError
from memfit.units import text

NAME = "demo"
HELP = "train on images under a memory cap: plain Keras, which is killed, and memfit, which finishes"

BACKENDS = ("tensorflow", "jax", "torch")
"""In the order in which one that is installed is taken."""

_NUM_CLASSES = 10
# The batch needs 1.6 to 5 times the cap, depending on the backend, and a framework alone a seventh to a quarter of it.
_CAP = "2 GiB"
_BATCH_SIZE = 256
_EPOCHS = 4
_NUM_IMAGES = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="the framework under Keras (default: KERAS_BACKEND, or the first of these that is installed)",
    )
    parser.add_argument(
        "--cap",
        type=num_bytes,
        default=_CAP,
        metavar="BYTES",
        help='what each training process may take, like "1.5 GiB" (default: %(default)s)',
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=_BATCH_SIZE,
        metavar="N",
        help="images of one update (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=positive, default=_EPOCHS, metavar="N", help="passes over the images (default: %(default)s)"
    )
    parser.add_argument(
        "--images",
        type=positive,
        default=_NUM_IMAGES,
        metavar="N",
        help="images to make, a fifth of them held out (default: %(default)s)",
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="make the images in this new or empty folder, and leave them there"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo.

    Returns:
        0 where plain Keras was killed and memfit finished for each model, else 1.

    Raises:
        MemfitError: The demo cannot be run: no framework, too few images, too little memory.
    """
    backend = chosen_backend(arguments.backend)
    num_validation = _checked_num_validation(arguments.images, arguments.batch_size)
    cap = demo_runs.checked_cap(arguments.cap)
    shown = display()
    shown.say(f"Each training process may take {text(cap.bytes)}: {cap.mechanism}. Keras runs on {backend}.")
    with _terminated_as_interrupted(), _images(arguments.keep, arguments.images, shown) as folder:
        runs = [
            demo_runs.run(
                Task(str(folder), model, way, arguments.batch_size, arguments.epochs),
                cap,
                backend=backend,
                display=shown,
            )
            for model in MODELS
            for way in WAYS
        ]
    report = demo_report.DemoReport(
        backend=backend,
        cap=cap,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        num_training=arguments.images - num_validation,
        num_validation=num_validation,
        runs=tuple(runs),
    )
    if arguments.json:
        print(report.to_json())
    else:
        demo_report.show(report)
    return 0 if report.as_promised else 1


def chosen_backend(asked: str | None) -> str:
    """The backend that was asked for, else that of KERAS_BACKEND, else the first that is installed; none is imported.

    Raises:
        MemfitError: None is installed, or not the one that was asked for.
    """
    wanted = asked or os.environ.get("KERAS_BACKEND")
    if wanted is None:
        wanted = next((name for name in BACKENDS if _is_installed(name)), None)
        if wanted is None:
            raise MemfitError(
                'No framework is installed for Keras to run on. Install one: pip install "memfit[tensorflow]"'
            )
    if wanted not in BACKENDS:
        raise ArgumentError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}. Received: KERAS_BACKEND={wanted!r}.")
    if not _is_installed(wanted):
        raise MemfitError(f'{wanted} is not installed. Install it: pip install "memfit[{wanted}]", or choose another.')
    return wanted


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _checked_num_validation(num_images: int, batch_size: int) -> int:
    """Images that are held out: the same share of every class, as ``image_folder`` splits."""
    counts = [len(range(label, num_images, _NUM_CLASSES)) for label in range(_NUM_CLASSES)]
    num_validation = sum(round(count * VALIDATION_SPLIT) for count in counts)
    if num_images - num_validation < batch_size or min(counts) < 5:
        # Five images of every class, or a multiple of that: then the fifth that is held out is a whole number of each.
        five_each = 5 * _NUM_CLASSES
        least = five_each * max(1, -(-batch_size * 5 // (4 * five_each)))
        raise ArgumentError(
            f"The images left to train on must fill a batch. Received: --images={num_images}, "
            f"--batch-size={batch_size}, and a fifth of the images is held out. Pass --images={least} or more."
        )
    return num_validation


@contextlib.contextmanager
def _images(keep: str | None, num_images: int, shown: Display) -> Iterator[pathlib.Path]:
    """A folder of drawn images; a temporary one is gone at the end, however that comes."""
    with contextlib.ExitStack() as stack:
        folder = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="memfit-demo-"))
        with shown.run(f"drawing {num_images} JPEG images in {_NUM_CLASSES} classes"):
            # Here, because numpy and Pillow are not needed to print a version.
            from memfit.data.synthetic_images import write_image_folder

            made = write_image_folder(folder, num_images=num_images, num_classes=_NUM_CLASSES)
        if keep:
            shown.say(f"The images stay in {made}.")
        yield made


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside, a SIGTERM ends the demo as Ctrl-C does, so that no child and no folder is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
