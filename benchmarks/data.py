"""What the loaders of ``memfit.data`` cost beside plain code, and what memory they take. Images per second: data_images.py.

    arrays   rows/s of ``memfit.data.arrays`` beside plain fancy indexing of the same rows in the same order, interleaved
             (target >= 0.9), and beside it with one and two threads that gather ahead
    tables   CSV and Parquet files of four times a cap train under that cap (target: they do), in a child process; the cap
             is the peak of the same process with a table of one file, and ``--room-mib``; 8,000 batches of 1,024 rows, drawn
             from the whole table, at most
    files    anonymous bytes a file of ``image_folder`` over 4,000 and 40,000 files, or more (target < 0.3 KB), what a
             second and a third epoch add, and seconds to the first batch after the scan (target < 0.5)

    KERAS_BACKEND=jax python benchmarks/data.py [arrays] [tables] [files] [--files 400000] [--out DIR]

Prints a line a measurement and appends each as a JSON row to ``benchmarks/results/data-BACKEND.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20
REPEATS = 5


def arrays() -> Iterator[dict[str, Any]]:
    """Plain indexing and ours in turn, over whole epochs."""
    from memfit import data

    for shape, dtype, batch_size in [
        ((60_000, 28, 28), "uint8", 256),
        ((60_000, 784), "float32", 256),
        ((60_000, 784), "float32", 32),
        ((20_000, 784), "float64", 256),
        ((200_000, 32), "float32", 256),
    ]:
        for place in ("memory", "memory map"):
            with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
                x = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
                y = np.arange(len(x)) % 10
                if place == "memory map":
                    np.save(Path(folder) / "x.npy", x)
                    x = np.load(Path(folder) / "x.npy", mmap_mode="r")
                ways: dict[str, Callable[[], Any]] = {"plain": lambda: plain(x, y, batch_size)}  # noqa: B023
                for workers in (0, 1, 2):
                    ways[f"workers={workers}"] = data.arrays(x, y, batch_size=batch_size, workers=workers).__iter__
                rates = interleaved(ways, len(x))
                row = {"question": "arrays", "rows": len(x), "row": list(shape[1:]), "dtype": dtype, "place": place}
                row |= {"batch_size": batch_size, "plain_rows_per_second": statistics.median(rates["plain"])}
                for name in list(ways)[1:]:
                    ratios = [ours / theirs for ours, theirs in zip(rates[name], rates["plain"], strict=True)]
                    row[f"ratio {name}"] = round(statistics.median(ratios), 3)
                yield row


def plain(x: np.ndarray, y: np.ndarray, batch_size: int) -> Iterator[Any]:
    order = np.random.default_rng(0).permutation(len(x))
    for start in range(0, len(x), batch_size):
        chosen = order[start : start + batch_size]
        rows = x[chosen]
        yield (rows.astype("float32") if rows.dtype == np.float64 else rows), y[chosen]


def interleaved(ways: dict[str, Callable[[], Any]], num_rows: int) -> dict[str, list[float]]:
    """Rows a second of each way, once a round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, batches in ways.items():
            start = time.perf_counter()
            for _batch in batches():
                pass
            rates[name].append(num_rows / (time.perf_counter() - start))
    return rates


CHILD = """
import json, sys, time
start = time.perf_counter()
import keras
import memfit
files, kept = sys.argv[1:]
dataset = memfit.data.table(files, label="label", batch_size=1024, cache_dir=kept)
made = time.perf_counter()
model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")
steps = min(len(dataset), 8000)
history = memfit.fit(model, dataset, steps_per_epoch=steps, verbose=0)
print(json.dumps({"rows": dataset.num_samples, "rows_trained": min(steps * 1024, dataset.num_samples),
                  "seconds_to_convert": made - start, "loss": history.history["loss"][-1],
                  "seconds_to_train": time.perf_counter() - made, "planned": history.memfit.plan.summary}))
"""


def tables(room: int) -> Iterator[dict[str, Any]]:
    """Trains on tables of four times a cap under it: the cap is what the process takes for a small table, and ``room``."""
    for kind in ("csv", "parquet"):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as parent:
            folder = Path(parent)
            write_table(folder / "small", kind, 1)
            small = trained(folder, "small", None)
            cap = small["peak_bytes"] + room
            size = write_table(folder / "data", kind, 4 * cap)
            about = {"question": "tables", "kind": kind, "floor_bytes": small["peak_bytes"], "room_bytes": room}
            yield about | {"cap_bytes": cap, "table_bytes": size} | trained(folder, "data", cap)


def trained(folder: Path, name: str, cap: int | None) -> dict[str, Any]:
    """How training on the table of that name ended in a child process; without a cap it has 64 GiB."""
    from memfit.probing.capped import run_capped

    command = [sys.executable, "-c", CHILD, str(folder / name), str(folder / f"{name}-kept")]
    run = run_capped(command, cap or 2**36, env=dict(os.environ), timeout=540)
    ended = {"trained": run.returncode == 0, "killed": run.killed, "peak_bytes": run.peak_bytes}
    said = [line for line in run.tail if line.startswith("{")]
    return ended | (
        json.loads(said[-1]) if run.returncode == 0 else {"seconds": run.seconds, "tail": list(run.tail[-3:])}
    )


def write_table(folder: Path, kind: str, num_bytes: int) -> int:
    """Files of random numbers, 32 features and a label, of so many bytes in all; each a copy of one of 64 MiB or so."""
    import pyarrow
    from pyarrow import csv, parquet

    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(150_000, 33)).astype("float32")
    columns = {f"f{i}": values[:, i] for i in range(32)} | {"label": values[:, :8].sum(axis=1) + 0.1 * values[:, 32]}
    table = pyarrow.table(columns)
    total = 0
    for part in range(10**6):
        path = folder / f"{part:04d}.{kind}"
        if part:
            os.link(folder / f"0000.{kind}", path)
        elif kind == "csv":
            csv.write_csv(table, path)
        else:
            parquet.write_table(table, path, row_group_size=50_000)
        total += path.stat().st_size
        if total >= num_bytes:
            break
    return total


FILES_CHILD = """
import json, sys, time
import memfit.data
from memfit import budgeting
folder = sys.argv[1]
import keras, memfit.data.image_dataset
small = memfit.data.image_folder(sys.argv[2], image_size=(32, 32), batch_size=32, workers=1)
for _ in small: pass
before = budgeting.reading().host_bytes
start = time.perf_counter()
dataset = memfit.data.image_folder(folder, image_size=(32, 32), batch_size=32, workers=1)
scanned = time.perf_counter()
batches = iter(dataset)
next(batches)
first = time.perf_counter()
batches.close()
grown = []
for epoch in range(3):
    dataset.epoch = epoch
    for number, _ in enumerate(dataset):
        if number > 120: break
    grown.append(budgeting.reading().host_bytes - before)
print(json.dumps({"files": dataset.num_samples, "scan_seconds": scanned - start, "first_batch_seconds": first - scanned,
                  "grown_bytes_after_epochs": grown, "said_bytes": dataset.peak_bytes}))
"""


def files(counts: list[int]) -> Iterator[dict[str, Any]]:
    """Anonymous memory over folders of more and more files, hard links of a few images."""
    from memfit.data.synthetic_images import write_image_folder

    with tempfile.TemporaryDirectory(dir="/var/tmp") as parent:
        images = sorted(write_image_folder(Path(parent) / "few", num_images=200, image_size=(64, 64)).glob("*/*.jpg"))
        rows = []
        for count in counts:
            folder = Path(parent) / str(count)
            for number in range(count):
                image = images[number % len(images)]
                if number < len(images):
                    (folder / image.parent.name).mkdir(parents=True, exist_ok=True)
                os.link(image, folder / image.parent.name / f"photo-of-something-{number:07d}.jpg")
            done = subprocess.run(
                [sys.executable, "-c", FILES_CHILD, str(folder), str(Path(parent) / "few")],
                check=True,
                capture_output=True,
                text=True,
            )
            rows.append({"question": "files"} | json.loads(done.stdout.splitlines()[-1]))
            least = rows[0]
            if len(rows) > 1:
                more = rows[-1]["files"] - least["files"]
                grown = rows[-1]["grown_bytes_after_epochs"][0] - least["grown_bytes_after_epochs"][0]
                rows[-1]["bytes_per_file"] = round(grown / more, 1)
                epochs = rows[-1]["grown_bytes_after_epochs"]
                rows[-1]["bytes_per_file_and_epoch"] = round((epochs[2] - epochs[0]) / 2 / rows[-1]["files"], 2)
            yield rows[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=["arrays", "tables", "files"])
    parser.add_argument("--files", type=int, default=40_000, help="the most files")
    parser.add_argument("--room-mib", type=int, default=256, help="what tables are trained with, beside the framework")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    counts = [count for count in (4_000, 40_000, 400_000) if count <= options.files]
    asked = {"arrays": arrays, "tables": lambda: tables(options.room_mib * MIB), "files": lambda: files(counts)}
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    about = {"backend": backend, "machine": f"{platform.machine()}, Python {platform.python_version()}"}
    options.out.mkdir(parents=True, exist_ok=True)
    for question in options.questions:
        for row in asked[question]():
            print(json.dumps(row), flush=True)
            with open(options.out / f"data-{backend}.jsonl", "a") as file:
                file.write(json.dumps(about | row) + "\n")


if __name__ == "__main__":
    main()
