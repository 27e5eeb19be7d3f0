"""The catalogue of out-of-memory causes, each run three times: plain, plain under a cap, and by ``memfit run`` under the cap.

    KERAS_BACKEND=torch python -m benchmarks.catalogue [--only 05 11] [--share 0.5] [--out DIR]

A cause is a script of plain user code in ``causes``. The cap lies between what a process takes that does next to nothing and
what the plain run takes; ``--share`` says where. Prints a table and writes one JSON row a cause to
``benchmarks/results/catalogue-BACKEND.jsonl``: how each run ended, its peak, its time, how far the result under the cap
is from the result without, and what memfit said. A cause that fails is a row too, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memfit import units
from memfit.probing.cages import CAGES, ONE_BY_ONE
from memfit.probing.capped import CappedRun, run_capped

HERE = Path(__file__).parent
CAUSES = HERE / "causes"
UNCAPPED = 6 * units.GIB
SECONDS = 240
ONLY_TENSORFLOW = ("09", "10", "26")
GROWS = ("02", "03", "04", "07", "12", "14", "30")
"""Causes of memory that grows where it should not, measured beside the same script with less of it
(``MEMFIT_CATALOGUE_LESS=1``: once instead of again and again; the arrays alone, without a fit); others beside next to nothing.
One whose peak is no higher than that is gone from the framework."""
NOT_BY_FIT = {
    "01": "memfit.data.image_folder",
    "08": "sparse labels",
    "28": "densify a batch at a time",
    "09": "memfit.data",
    "10": "memfit.data",
    "26": "memfit.data",
}
"""Causes that lie before or under ``fit``, and what mends them."""

_NOTHING = """
import keras, numpy as np, sys
keras.utils.set_random_seed(0)  # imports TensorFlow on every backend, as the causes do
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(np.ones((64, 4), "float32"), np.ones((64, 1), "float32"), verbose=2)
"""


_GONE = 48 * units.MIB
"""What two runs of one script differ by without a cause."""


def run(command: list[str], cap: int, backend: str, *, less: bool = False) -> CappedRun:
    """A run in a process of its own; of ``memfit run`` the supervisor outlives its child, as in a container."""
    env = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_TORCH_DEVICE": "cpu", "PYTHONUNBUFFERED": "1"}
    env["MEMFIT_CATALOGUE_LESS"] = "1" if less else ""
    cages = ONE_BY_ONE if command[0] == "-m" else CAGES
    return run_capped([sys.executable, *command], cap, env=env, timeout=SECONDS, cages=cages)


def outcome(ended: CappedRun) -> str:
    """How a run ended, in words."""
    if ended.timed_out:
        return "out of time"
    if ended.returncode == 0:
        return "finished after a kill" if ended.killed else "finished"
    last = next((line for line in reversed(ended.tail) if "Error" in line), "")
    if "memfit.errors" in last:
        return f"refused: {last.partition(': ')[2][:240]}"
    return "killed" if ended.killed else f"failed: {last[:240]}"


def difference(expected: Path, actual: Path) -> float | None:
    """The largest difference between two results, relative to the largest number of each array."""
    if not actual.exists():
        return None
    with np.load(expected) as a, np.load(actual) as b:
        pairs = [(a[name].astype("float64"), b[name].astype("float64")) for name in a.files]
    return max(float(np.abs(x - y).max() / max(1e-6, np.abs(x).max())) for x, y in pairs)


def row(cause: Path, base: int, share: float, backend: str) -> dict[str, Any]:
    """One cause, three runs."""
    number = cause.stem.split("_")[1]
    with tempfile.TemporaryDirectory(prefix="memfit-catalogue-") as folder:
        reference, capped, protected = (
            str(Path(folder) / f"{way}.npz") for way in ("reference", "capped", "protected")
        )
        plain = run([str(cause), reference], UNCAPPED, backend)
        if plain.returncode != 0:
            raise RuntimeError(f"{cause.name} does not run without a cap: {plain.tail[-3:]}")
        once = run([str(cause), capped], UNCAPPED, backend, less=True).peak_bytes if number in GROWS else base
        gone = plain.peak_bytes - once < _GONE
        cap = plain.peak_bytes + _GONE if gone else int(once + share * (plain.peak_bytes - once))
        under_cap = run([str(cause), capped], cap, backend)
        ours = run(["-m", "memfit", "run", str(cause), protected], cap, backend)
        return {
            "backend": backend,
            "cause": number,
            "name": name_of(cause),
            "cap_bytes": cap,
            "gone": gone,
            "uncapped": {"peak_bytes": plain.peak_bytes, "seconds": plain.seconds},
            "plain": {"outcome": outcome(under_cap), "peak_bytes": under_cap.peak_bytes, "seconds": under_cap.seconds},
            "memfit": {
                "outcome": outcome(ours),
                "peak_bytes": ours.peak_bytes,
                "seconds": ours.seconds,
                "difference": difference(Path(reference), Path(protected)),
                "said": [line for line in ours.tail if line.startswith("memfit:")][:6],
            },
            "mended_by": NOT_BY_FIT.get(number, "memfit run"),
        }


def name_of(cause: Path) -> str:
    """The cause in words."""
    return cause.stem.split("_", 2)[2].replace("_", " ")


def question(row: dict[str, Any]) -> tuple[str, str]:
    """Which row of the file a row is: a cause may have several reproducers."""
    return row["cause"], row["name"]


def rows(only: list[str], share: float, backend: str) -> Iterator[dict[str, Any]]:
    """One row a cause, as it is found; one that does not run says why."""
    base = run(["-c", _NOTHING], UNCAPPED, backend).peak_bytes
    for cause in sorted(CAUSES.glob("cause_*.py")):
        number = cause.stem.split("_")[1]
        if (only and number not in only) or (number in ONLY_TENSORFLOW and backend != "tensorflow"):
            continue
        try:
            yield row(cause, base, share, backend)
        except Exception as error:  # noqa: BLE001 - the other causes are run all the same
            yield {"backend": backend, "cause": number, "name": name_of(cause), "failed": f"{error}"[:400]}


def main() -> None:
    """Parses, runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="numbers of causes")
    parser.add_argument("--share", type=float, default=0.5, help="where the cap lies between nothing and the plain run")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    path = options.out / f"catalogue-{backend}.jsonl"
    kept = path.read_text().splitlines() if path.exists() else []
    for found in rows(options.only, options.share, backend):
        kept = [line for line in kept if question(json.loads(line)) != question(found)] + [json.dumps(found)]
        path.write_text("\n".join(sorted(kept, key=lambda line: question(json.loads(line)))) + "\n")
        if "failed" in found:
            print(f"{found['cause']} {found['name']:<26} failed: {found['failed']}", flush=True)
            continue
        ours, cap = found["memfit"], units.text(found["cap_bytes"])
        print(
            f"{found['cause']} {found['name']:<26} cap {cap:>9}  plain: {found['plain']['outcome']:<10} "
            f"memfit: {ours['outcome']} in {ours['seconds']:.0f} s, peak {units.text(ours['peak_bytes'])}, "
            f"difference {ours['difference']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
