"""How near the predicted peak of a training step is to the measured one, one fresh child process a row.

    python benchmarks/prediction.py --backend torch [--models resnet50 ...] [--batches middle] [--optimizers adam] [--peer]
    python benchmarks/prediction.py --summary benchmarks/results/prediction-*.jsonl

A child builds and compiles a model with its optimizer and metrics, asks ``backend.step_bytes`` for the step at the real
batch (``seconds``), reads its anonymous resident bytes as the base, attaches what ``memfit.fit`` attaches, fits three steps
on synthetic arrays and takes the highest anonymous bytes: samples every 5 ms, and the kernel's high-water mark less pages
of files. On a GPU the framework's own figures stand for both.

What is compared: ``measured`` is peak minus base; ``predicted`` is ``Estimate.bytes`` and ``upper`` is ``Estimate.upper``, so
that error and margin are those of the analysis itself. The optimizer's slots are in the base: ``build`` makes and writes
them on every backend (512 MiB of fresh slots were seen to make a process grow by that much). ``planned`` is what
``profiling.peak.on_top_of_now`` holds against the budget, less the same base: ``upper`` with queued batches and a reserve
for the runtime. The measured peak does hold a batch or two in flight and what a first run leaves, so that ``planned`` is the
promise that a user relies on and ``upper`` is the harder test.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memfit.budgeting.usage import Gauge
from memfit.units import GIB, text

BACKENDS = ("tensorflow", "jax", "torch")
LARGE = 200_000_000
"""Errors are relative to the peak where it is over this many bytes."""

_KEY = ("backend", "device", "model", "batch", "optimizer", "micro", "jit")

PUBLISHED = """\
Published for research estimators of GPU memory, each on its own models, so that none compares directly:
  LLMem (IJCAI 2024, doi 10.24963/ijcai.2024/699): error up to 1.6 % on one GPU, 3.0 % on average on several; decoders only
  xMem (arXiv 2510.21048): median relative error 91 % below that of DNNMem, SchedTune and LLMem; 25 models, 5209 runs
  VeritasEst (arXiv 2504.03887): relative error 84 % below its baselines'; CNNs
  DNNMem (ESEC/FSE 2020, doi 10.1145/3368089.3417050), Horus (TPDS 2022, doi 10.1109/tpds.2021.3079202), SchedTune (CCGrid
  2022): the abstracts, which are all that was read, give no error of the memory estimate"""

NUM_STEPS = 3
MEMORY_LIMIT = 8 * GIB
TIME_LIMIT = 180
BATCHES = ("small", "middle", "large")


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one child is asked for.

    Attributes:
        model: A name of ``prediction_models.MODELS``.
        batch: "small", "middle" or "large".
        optimizer: As ``compile`` takes it.
        micro: Whether the batch is split into parts of a quarter.
        jit: Whether the model is compiled with ``jit_compile=True`` where Keras would decide otherwise.
        peer: Whether PyTorch's MemTracker is asked as well.
    """

    model: str
    batch: str
    optimizer: str
    micro: bool = False
    jit: bool = False
    peer: bool = False


# In the child


def status_bytes(key: str) -> int:
    """A figure of this process' /proc status."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(key + ":"):
            return int(row.split()[1]) * 1024
    raise KeyError(key)


@contextlib.contextmanager
def host_peak() -> Iterator[list[int]]:
    """Inside, the anonymous resident bytes are sampled every 5 ms; afterwards the list holds one number, the highest."""
    Path("/proc/self/clear_refs").write_text("5")
    highest, done = [status_bytes("RssAnon")], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], status_bytes("RssAnon"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()
        highest[0] = max(highest[0], status_bytes("VmHWM") - status_bytes("RssFile") - status_bytes("RssShmem"))


def trimming(backend: Any) -> list[Any]:
    """Callbacks that give free pages back before each step, as ``memfit.fit`` does where it would not fit beside them."""
    from memfit.guarding.trimming import Trimming

    return [Trimming(lambda: 1, lambda: 0)] if backend.step_costs().own_pages is not None else []


def base_bytes(model: Any, backend: Any) -> int:
    """What is held between steps, on the device or in the process, once all that was started is done."""
    import keras

    for variable in [*model.variables, *model.optimizer.variables]:
        if (
            math.prod(variable.shape) > 2**16
        ):  # JAX computes in the background; a view of the whole would forbid donation
            keras.ops.convert_to_numpy(variable.value[(0,) * len(variable.shape)])
    backend.release()
    device = backend.device_memory()
    return status_bytes("RssAnon") if device is None else device.used_bytes


def measure(trial: Trial) -> dict[str, Any]:
    """One row, in this process."""
    import keras
    import prediction_models

    from memfit import backends
    from memfit.backends import keras_seam
    from memfit.executing import attached, feeding
    from memfit.profiling import peak
    from memfit.records import Split

    backend = backends.current()
    entry = prediction_models.MODELS[trial.model]
    batch_size = entry.batches[BATCHES.index(trial.batch)]
    split = Split(batch_size // 4) if trial.micro else None
    case = entry.build()
    model = case.model
    model.compile(trial.optimizer, case.loss, jit_compile=True if trial.jit else "auto")
    x, y = case.arrays(NUM_STEPS * batch_size)
    batch = case.batch(batch_size)
    keras_seam.symbolic_build(model, batch)
    started = time.perf_counter()
    step = backend.step_bytes(model, batch, split)
    seconds = time.perf_counter() - started
    device = backend.device_memory()
    row: dict[str, Any] = {
        **dataclasses.asdict(trial),
        "backend": backend.name,
        "device": "cpu" if device is None else device.kind,
        "role": entry.role,
        "batch_size": batch_size,
        "keras": keras.__version__,
        "seconds": round(seconds, 2),
    }
    if step is None:
        return row | {"skipped": "the step cannot be analysed"}
    row |= {"predicted": step.bytes, "upper": step.upper, "source": step.source, "moment": str(step.moment or "")}
    base = base_bytes(model, backend)
    waiting = peak.holdings(model, batch).inputs  # a batch in flight beside the one in the step
    planned = peak.on_top_of_now(step, waiting=waiting, backend=backend)
    if device is None and base + step.upper > MEMORY_LIMIT:
        return row | {"skipped": f"{text(base + step.upper)} would be over the limit of {text(MEMORY_LIMIT)}"}
    arguments = {"x": x, "y": y, "batch_size": batch_size, "shuffle": False, "verbose": 0}
    fed, _ = feeding.streamed(arguments)
    with attached.attached(model, split, backend, analysed=True), host_peak() as highest:
        # As memfit.fit does under a budget that the step only just fits.
        model.fit(**fed, callbacks=trimming(backend))
    device = backend.device_memory()
    measured = (highest[0] if device is None else device.peak_bytes) - base
    row |= {"base": base, "measured": measured, "planned": planned.upper - base}
    if trial.peer and backend.name == "torch" and split is None:
        row |= peer_estimate(model, batch)
    return row


def peer_estimate(model: Any, batch: Any) -> dict[str, Any]:
    """What PyTorch's own MemTracker says of the same step on fake tensors, beside what is held between steps.

    Weights and optimizer slots are tracked as external and taken off. What MemTracker has no way to be told is done for it:
    scalars, which Keras' optimizers read, read as 1, and the modules' own weights, which are real, are not added.
    """
    import keras
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils._python_dispatch import TorchDispatchMode

    from memfit.backends import keras_seam

    class Readable(TorchDispatchMode):
        """Reads each scalar as 1."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0 if args[0].dtype.is_floating_point else 1
            return func(*args, **(kwargs or {}))

    def fake(value: Any) -> Any:
        made = torch.empty_like(value)
        return torch.nn.Parameter(made) if value.requires_grad else made

    def total(which: str) -> int:
        return sum(int(snapshot["Total"]) for snapshot in tracker.get_tracker_snapshot(which).values())

    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    variables = list({id(variable): variable for variable in variables}.values())
    started = time.perf_counter()
    tracker = MemTracker()
    tracker._track_module_params_and_buffers = lambda module, install_grad_hooks=True: (0, 0)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = [fake(variable.value) for variable in variables]
            tracker.track_external(*fakes)
            held = total("current")
            with keras_seam.replaced_values(variables, fakes), tracker, Readable():
                data = keras_seam.map_leaves(
                    lambda spec: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)), batch
                )
                model.train_step(keras.utils.pack_x_y_sample_weight(*data))
            peak = total("peak")
    except Exception as error:  # noqa: BLE001 - whatever the peer fails with is its result
        return {"peer_error": f"{type(error).__name__}: {error}"[:300]}
    return {"peer_predicted": peak - held, "peer_seconds": round(time.perf_counter() - started, 2)}


# In the parent


def run(trial: Trial, backend: str) -> dict[str, Any]:
    """The row of one child; one that says why where it gave none."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--backend", backend, "--row", json.dumps(dataclasses.asdict(trial))]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=environment, stdout=output, stderr=errors, text=True) as child:
            reason = watch(child)
        output.seek(0)
        found = next((row[4:] for row in output.read().splitlines() if row.startswith("ROW ")), None)
        if found is not None:
            return json.loads(found) | {"wall": round(time.monotonic() - started, 1)}
        errors.seek(0)
        reason = reason or f"exit {child.returncode}: {errors.read().strip()[-300:]}"
    return {**dataclasses.asdict(trial), "backend": backend, "device": "cpu", "skipped": reason}


def watch(child: subprocess.Popen[str]) -> str | None:
    """Waits for the child's end; kills it over the limits and says why."""
    deadline = time.monotonic() + TIME_LIMIT
    with Gauge(child.pid) as gauge:
        while child.poll() is None:
            held = gauge.read()
            if held > MEMORY_LIMIT or time.monotonic() > deadline:
                child.kill()
                return f"killed: {text(held)}" if held > MEMORY_LIMIT else f"killed after {TIME_LIMIT} s"
            time.sleep(0.05)
    return None


# The rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, one JSON object a line."""
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def put(row: dict[str, Any], path: Path) -> None:
    """Adds a row to the file; one of the same trial is replaced."""
    kept = [old for old in read_rows(path) if any(old.get(key) != row.get(key) for key in _KEY)]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(one) + "\n" for one in [*kept, row]))
    os.replace(new, path)


def name(row: dict[str, Any]) -> str:
    """A row's model and what is special about it."""
    more = ("/4" if row["micro"] else "") + (" jit" if row["jit"] else "")
    return f"{row['model']} {row.get('batch_size', row['batch'])}{more} {row['optimizer']}"


def line(row: dict[str, Any]) -> str:
    """A row as a person reads it."""
    if "measured" not in row:
        return f"{row['backend']:10} {name(row):32} skipped: {row['skipped']}"
    mib = {key: round(row[key] / 2**20) for key in ("measured", "predicted", "upper", "planned")}
    peer = f"  MemTracker {error(row, 'peer_predicted'):+.1%}" if "peer_predicted" in row else ""
    flag = "" if row["upper"] >= row["measured"] else "  ABOVE MARGIN"
    return (
        f"{row['backend']:10} {name(row):32} measured {mib['measured']:5} predicted {mib['predicted']:5} "
        f"({error(row):+6.1%}) upper {mib['upper']:5} planned {mib['planned']:5} MiB, {row['seconds']:.1f} s of "
        f"{row.get('wall', 0):.0f}{peer}{flag}"
    )


def error(row: dict[str, Any], key: str = "predicted") -> float:
    """How far a prediction is off, relative to the measured peak; below 0 where it is too low."""
    return row[key] / row["measured"] - 1


def summary(path: Path) -> str:
    """What the rows of one file say, calibration and validation apart, beside the peer and what others published."""
    rows = read_rows(path)
    measured = [row for row in rows if "measured" in row]
    skipped = [row for row in rows if "measured" not in row]
    large = [row for row in measured if row["measured"] > LARGE]
    lines = [f"{path.name}: {len(measured)} rows, {len(large)} over 200 MB, {len(skipped)} skipped"]
    for role in ("calibration", "validation", "all"):
        chosen = [row for row in large if role in ("all", row["role"])]
        if chosen:
            lines += [f"{role}, {len(chosen)} rows over 200 MB", *_errors(chosen)]
    if measured:
        lines += [*_promises(measured), *_peer(large)]
    lines += [f"  skipped: {name(row)}: {row['skipped']}" for row in skipped]
    return "\n".join([*lines, PUBLISHED])


def _errors(rows: list[dict[str, Any]], key: str = "predicted") -> list[str]:
    """Median, 95th percentile (nearest rank) and worst case of what one column predicts; memfit's margin beside its own."""
    sizes = sorted(abs(error(row, key)) for row in rows)
    high = sizes[math.ceil(0.95 * len(sizes)) - 1]
    worst = min(rows, key=lambda row: error(row, key))
    lines = [
        f"  |error|: median {statistics.median(sizes):.1%} (target 3 %), 95th percentile {high:.1%} (target 10 %)",
        f"  worst under-prediction: {min(0, error(worst, key)):.1%} ({name(worst)})",
    ]
    if key == "predicted":
        margins = [(row["upper"] - row["predicted"]) / row["measured"] for row in rows]
        lines.append(f"  margin: median {statistics.median(margins):.1%}, at most {max(margins):.1%} (target 10 %)")
    return lines


def _promises(rows: list[dict[str, Any]]) -> list[str]:
    """Peaks above what was promised, and the seconds that the promises took: rows of every size."""
    above = [row for row in rows if row["measured"] > row["upper"]]
    unplanned = [row for row in rows if row["measured"] > row["planned"]]
    slowest = max(rows, key=lambda row: row["seconds"])
    resnet = [row["seconds"] for row in rows if row["model"] == "resnet50"]
    return [
        f"rows of any size above prediction + margin: {len(above)} of {len(rows)} (target 0); above what planning reckons "
        f"with: {len(unplanned)}",
        *(f"  {line(row)}" for row in above),
        f"seconds predicting: median {statistics.median(row['seconds'] for row in rows):.1f}, at most "
        f"{slowest['seconds']:.1f} ({name(slowest)})"
        + (f"; ResNet50 at most {max(resnet):.1f} (target 15)" if resnet else ""),
    ]


def _peer(rows: list[dict[str, Any]]) -> list[str]:
    chosen = [row for row in rows if "peer_predicted" in row]
    failed = [row for row in rows if "peer_error" in row]
    lines = []
    if chosen:
        slowest = max(row["peer_seconds"] for row in chosen)
        lines += [f"MemTracker of PyTorch on the same {len(chosen)} rows, up to {slowest:.1f} s"]
        lines += [*_errors(chosen, "peer_predicted"), "  memfit on these:", *_errors(chosen)]
    return lines + [f"  MemTracker failed on {name(row)}: {row['peer_error']}" for row in failed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    parser.add_argument("--models", nargs="+", help="names; all of them by default")
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--micro", action="store_true", help="each batch in parts of a quarter")
    parser.add_argument("--jit", action="store_true", help="compile with jit_compile=True")
    parser.add_argument("--peer", action="store_true", help="PyTorch: ask MemTracker as well")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/prediction-BACKEND.jsonl")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="FILE", help="print the summary of rows that exist")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print("ROW " + json.dumps(measure(Trial(**json.loads(options.row)))))
        return
    if options.summary:
        print("\n\n".join(summary(path) for path in options.summary))
        return
    os.environ["KERAS_BACKEND"] = options.backend
    import prediction_models

    names = options.models or list(prediction_models.MODELS)
    out = options.out or Path(__file__).parent / "results" / f"prediction-{options.backend}.jsonl"
    for batch in options.batches:
        for optimizer in options.optimizers:
            for name in names:
                trial = Trial(name, batch, optimizer, options.micro, options.jit, options.peer)
                row = run(trial, options.backend)
                put(row, out)
                print(line(row), flush=True)
    print(summary(out))


if __name__ == "__main__":
    main()
