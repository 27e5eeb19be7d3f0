"""memfit's plan beside the best of a grid of hand settings under the same real cap, one fresh child process a measurement.

    python benchmarks/planning.py --backend torch [--models unet ...] [--budgets 75 50 25 15] [--batch middle]
    python benchmarks/planning.py --backend torch --largest [--models vgg16 ...]
    python benchmarks/planning.py --backend torch --pages [--models unet ...]
    python benchmarks/planning.py --backend torch --groups [--models transformer ...]
    python benchmarks/planning.py --backend tensorflow --xla [--models unet ...]
    python benchmarks/planning.py --summary benchmarks/results/planning-*.jsonl

A budget is a share of what plain ``model.fit`` takes on top of what the process holds before training. The hand settings are
every combination of 1, 2, 4, 8 and 16 parts with no recomputation, with the arrangement that keeps half of the activations,
and with about sqrt(n) segments that recompute all; for a model with BatchNormalization one part alone, as splitting would
change the result. Each is measured once without a cap: peak and seconds of a step. Then, for each budget, ``memfit.fit`` runs
under it, and after it the fastest of the hand settings that the budget holds, under the same cap; where that one is killed, the
next. ``ratio`` is memfit's throughput over the hand setting's. ``--known-grid`` takes what the output file says of the hand
settings without a cap, measured before: which of them is tried under the cap, never what it is compared by.
``planning_bytes`` is the most that was held before training began, beyond what was held before ``fit``.

``--pages``: a step in two parts with its tensors on the heap, and with large ones in pages of their own, three times in turn.

``--groups``: the whole of the smallest batch with the weights updated at once, and in groups, three times in turn.

``--xla``: the plain step compiled with ``jit_compile=True`` and with False, three times in turn.

``--largest``: the largest batch that trains under the peak of plain Keras at the large batch, beside plain Keras: by
recomputation alone at full batch, and by ``memfit.fit``, whose plan may split the batch (both steps of data lie in memory and
count).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memfit.probing.capped import run_capped
from memfit.units import GIB, text

MODELS = ("unet", "lstm", "transformer", "gpt", "vit", "mlp_small", "cnn_3d", "resnet50")
BUDGETS = (75, 50, 25, 15)
PARTS = (1, 2, 4, 8, 16)
RECOMPUTED = ("none", "half", "sqrt")
FACTORS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
PLANNED_FACTORS = (2.0, 4.0, 8.0, 16.0)
JIT = {"xla": True, "no xla": False}
STEPS, EPOCHS = 2, 5
NO_CAP = 10 * GIB
TIME_LIMIT = 400


@dataclasses.dataclass(frozen=True)
class Job:
    """What one child does.

    Attributes:
        model: A name of ``prediction_models.MODELS``.
        batch_size: Samples of a batch.
        way: "plain" for ``model.fit``, "xla" and "no xla" for it with ``jit_compile`` set, "hand" for a plan by hand, "memfit".
        parts: Of a plan by hand.
        recomputed: The same: one of ``RECOMPUTED``, "smallest", "groups" for none and the weights updated in groups, or "pages"
            for none and large tensors in pages of their own.
    """

    model: str
    batch_size: int
    way: str
    parts: int = 1
    recomputed: str = "none"


# In the child


class EpochSeconds:
    """A callback's worth of clock: the wall time of each epoch."""

    def __init__(self) -> None:
        import keras

        self.seconds: list[float] = []
        self.callback = keras.callbacks.LambdaCallback(on_epoch_begin=self._begin, on_epoch_end=self._end)

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def by_hand(model: Any, batch: Any, job: Job) -> Any:
    """The plan that a job describes."""
    import memfit
    from memfit.levers import remat
    from memfit.records import Levers, Plan

    levers = Levers(own_pages=job.recomputed == "pages", grouped_update=job.recomputed == "groups")
    if job.recomputed not in ("none", "pages", "groups"):
        chain = remat.chain(model, batch)
        chosen = {
            "half": lambda: remat.choose(chain, chain.plain_bytes // 2) or remat.ladder(chain)[-1],
            "sqrt": lambda: remat.everything(chain, max(2, round(math.sqrt(len(chain.units))))),
            "smallest": lambda: remat.ladder(chain)[-1],
        }[job.recomputed]()
        levers = Levers(remat=chosen)
    size = None if job.parts == 1 else -(-job.batch_size // job.parts)
    return Plan(job.batch_size, size, memfit.budget(), levers=levers)


def measure(job: Job) -> dict[str, Any]:
    """One row, in this process."""
    import keras
    import prediction_models

    import memfit
    from memfit.backends import keras_seam
    from memfit.budgeting import reading
    from memfit.errors import DoesNotFitError
    from memfit.guarding.watch import Watcher

    case = prediction_models.MODELS[job.model].build()
    model = case.model
    model.compile("adam", case.loss, jit_compile=JIT.get(job.way, "auto"))
    x, y = case.arrays(STEPS * job.batch_size)
    batch = case.batch(job.batch_size)
    keras_seam.symbolic_build(model, batch)
    clock = EpochSeconds()
    arguments = {"batch_size": job.batch_size, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    arguments["callbacks"] = [clock.callback]
    row: dict[str, Any] = {"keras": keras.__version__, "base": reading().host_bytes}
    row["splits"] = not any(
        isinstance(layer, keras.layers.BatchNormalization) for layer in keras_seam.flat_layers(model)
    )
    if job.way == "plain" or job.way in JIT:
        model.fit(x, y, **arguments)
    elif job.way == "hand":
        memfit.fit(model, x, y, **arguments, plan=by_hand(model, batch, job))
    else:
        with Watcher(interval=0.005) as watcher:

            def planned(logs: Any = None) -> None:
                row["planning_bytes"] = watcher.peak.host_bytes - row["base"]

            arguments["callbacks"].append(keras.callbacks.LambdaCallback(on_train_begin=planned))
            try:
                report = memfit.fit(model, x, y, **arguments).memfit
            except DoesNotFitError as error:
                planned()
                return row | {"refused": str(error)[:300]}
        row |= {
            "plan": report.plan.summary,
            "predicted": None if report.plan.peak is None else report.plan.peak.upper,
            "expected_time": report.plan.relative_time,
            "planning_seconds": round(report.planning_seconds, 1),
            "trials": sum("a trial in a child" in reason for reason in report.plan.reasons),
        }
    return row | work(model, batch, job) | {"seconds": round(min(clock.seconds[1:]) / STEPS, 4)}


def work(model: Any, batch: Any, job: Job) -> dict[str, Any]:
    """What the costs of levers are fitted to: operations of a forward pass, their number, the share done again."""
    from memfit.levers import remat

    if job.way == "memfit":
        return {}
    chain, levers = remat.chain(model, batch), by_hand(model, batch, job).levers
    again = 0.0 if levers.remat is None else remat.recomputation(chain, levers.remat) / chain.cost
    return {"flops": chain.cost, "layers": chain.rounds, "again": round(again, 3)}


# In the parent


def run(job: Job, backend: str, cap: int = NO_CAP) -> dict[str, Any]:
    """What a child measured under a cap, or how it ended."""
    here = Path(__file__).resolve()
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "MEMFIT_CACHE_DIR": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent), *filter(None, sys.path)])
    command = [sys.executable, str(here), "--job", json.dumps(dataclasses.asdict(job))]
    done = run_capped(command, cap, env=environment, timeout=TIME_LIMIT)
    found = next((line[4:] for line in done.tail if line.startswith("ROW ")), None)
    if found is not None:
        return json.loads(found) | {"peak": done.peak_bytes}
    reason = "killed" if done.killed or done.returncode in (134, 137, -9) else f"exit {done.returncode}"
    return {"failed": reason, "peak": done.peak_bytes, "tail": " ".join(done.tail)[-300:]}


def grid(name: str, batch_size: int, splits: bool, backend: str) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Every hand setting with what it took."""
    for recomputed, parts in itertools.product(RECOMPUTED, PARTS if splits else (1,)):
        if parts <= batch_size and (recomputed, parts) != ("none", 1):
            job = Job(name, batch_size, "hand", parts, recomputed)
            row = run(job, backend)
            print(
                f"  {recomputed:5} {parts:2} parts: {row.get('seconds')} s, {text(row['peak'] or 0)} {row.get('failed', '')}"
            )
            if "seconds" in row:
                yield job, row


def known_grid(path: Path, row: dict[str, Any]) -> list[tuple[Job, dict[str, Any]]]:
    """The hand settings of a model and batch as a file has them, fastest first."""
    asked = row | {"budget": "grid"}
    old = [json.loads(one) for one in path.read_text().splitlines()]
    found = next(one for one in old if all(one.get(key) == asked[key] for key in asked))
    names = [field.name for field in dataclasses.fields(Job)]
    return [(Job(**{name: one[name] for name in names}), one) for one in found["grid"]]


def rows(
    name: str, batch: str, budgets: list[int], backend: str, *, known: Path | None = None
) -> Iterator[dict[str, Any]]:
    """One row a budget."""
    import prediction_models

    entry = prediction_models.MODELS[name]
    batch_size = entry.batches[("small", "middle", "large").index(batch)]
    plain_job = Job(name, batch_size, "plain")
    plain = run(plain_job, backend)
    common = {"backend": backend, "model": name, "batch_size": batch_size}
    if "seconds" not in plain:
        yield common | {"budget": None, "skipped": str(plain)}
        return
    print(
        f"{name} {batch_size}: plain {plain['seconds']} s, {text(plain['base'])} before, {text(plain['peak'])}",
        flush=True,
    )
    if known is None:
        settings = [(plain_job, plain), *grid(name, batch_size, plain["splits"], backend)]
        settings.sort(key=lambda setting: setting[1]["seconds"])
        yield common | {"budget": "grid", "grid": [dataclasses.asdict(job) | row for job, row in settings]}
    else:
        settings = known_grid(known, common)
    for share in budgets:
        cap = int(plain["base"] + share / 100 * (plain["peak"] - plain["base"]))
        ours = run(Job(name, batch_size, "memfit"), backend, cap)
        hand, theirs = None, None
        for hand, measured in settings:
            theirs = run(hand, backend, cap) if measured["peak"] <= cap else None
            if theirs is not None and "seconds" in theirs:
                break
        row = common | {"budget": share, "cap": cap, "plain_peak": plain["peak"], "plain_seconds": plain["seconds"]}
        row |= {"keras": plain["keras"], "memfit": ours}
        if theirs is not None and "seconds" in theirs and hand is not None:
            row |= {"hand": {"parts": hand.parts, "recomputed": hand.recomputed, **theirs}}
            if "seconds" in ours:
                row["ratio"] = round(theirs["seconds"] / ours["seconds"], 3)
        yield row


def largest(name: str, backend: str) -> dict[str, Any]:
    """The largest batches under the plain peak at the large batch, as multiples of it."""
    import prediction_models

    batch_size = prediction_models.MODELS[name].batches[2]
    plain = run(Job(name, batch_size, "plain"), backend)
    cap = int(plain["peak"] * 1.02)

    def most(factors: tuple[float, ...], job: Job) -> float:
        """The last of the factors before one that does not train; 1 where none does."""
        best = 1.0
        for factor in factors:
            bigger = dataclasses.replace(job, batch_size=int(batch_size * factor))
            if "seconds" not in run(bigger, backend, cap):
                break
            best = bigger.batch_size / batch_size
        return best

    return {
        "backend": backend,
        "model": name,
        "batch_size": batch_size,
        "budget": "largest",
        "cap": cap,
        "base": plain["base"],
        "plain": most(FACTORS, Job(name, batch_size, "plain")),
        "largest": most(FACTORS, Job(name, batch_size, "hand", 1, "smallest")),
        "planned": most(PLANNED_FACTORS, Job(name, batch_size, "memfit")),
    }


def pages(name: str, backend: str) -> dict[str, Any]:
    """A step in two parts on the heap and in pages of its own."""
    batch_size = middle(name)
    ways = {"heap": "none", "own_pages": "pages"}
    jobs = {way: Job(name, batch_size, "hand", 2, recomputed) for way, recomputed in ways.items()}
    return {"backend": backend, "model": name, "batch_size": batch_size, "budget": "pages", **in_turn(jobs, backend)}


def groups(name: str, backend: str) -> dict[str, Any]:
    """A step of few samples with all weights updated at once and in groups."""
    import prediction_models

    batch_size = int(prediction_models.MODELS[name].batches[0])
    jobs = {"at_once": Job(name, batch_size, "hand"), "groups": Job(name, batch_size, "hand", 1, "groups")}
    return {"backend": backend, "model": name, "batch_size": batch_size, "budget": "groups", **in_turn(jobs, backend)}


def xla(name: str, backend: str) -> dict[str, Any]:
    """The plain step with XLA and without."""
    batch_size = middle(name)
    jobs = {way.replace(" ", "_"): Job(name, batch_size, way) for way in JIT}
    return {"backend": backend, "model": name, "batch_size": batch_size, "budget": "xla", **in_turn(jobs, backend)}


def middle(name: str) -> int:
    """A model's middle batch size."""
    import prediction_models

    return int(prediction_models.MODELS[name].batches[1])


def in_turn(jobs: dict[str, Job], backend: str) -> dict[str, Any]:
    """Jobs measured three times in turn: the medians, by the names that they are given."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in jobs}
    for _ in range(3):
        for way, made in found.items():
            made.append(run(jobs[way], backend))
    row: dict[str, Any] = {}
    for way, made in found.items():
        row[f"{way}_seconds"] = statistics.median(one["seconds"] for one in made)
        row[f"{way}_bytes"] = int(statistics.median(one["peak"] - one["base"] for one in made))
    return row


def line(row: dict[str, Any]) -> str:
    """A row as a person reads it."""
    head = f"{row['backend']:10} {row['model']:12} {row['batch_size']:5}"
    if "largest" in row:
        return (
            f"{head} under {text(row['cap'])} trains {row['plain']:.2f} times the batch plainly, {row['largest']:.2f} by "
            f"recomputation alone, {row['planned']:.0f} by memfit.fit"
        )
    if "skipped" in row:
        return f"{head} skipped: {row['skipped']}"
    if row.get("budget") == "pages":
        heap, own = (f"{row[f'{way}_seconds']:.3f} s, {text(row[f'{way}_bytes'])}" for way in ("heap", "own_pages"))
        return f"{head} in 2 parts: heap {heap}; own pages {own}"
    if row.get("budget") == "groups":
        at_once, grouped = (
            f"{row[f'{way}_seconds']:.3f} s, {text(row[f'{way}_bytes'])}" for way in ("at_once", "groups")
        )
        return f"{head} updated at once {at_once}; in groups {grouped}"
    if row.get("budget") == "xla":
        on, off = (f"{row[f'{way}_seconds']:.3f} s, {text(row[f'{way}_bytes'])}" for way in ("xla", "no_xla"))
        return f"{head} with XLA {on}; without {off}"
    if "grid" in row:
        best = row["grid"][0]
        return (
            f"{head} {len(row['grid'])} settings by hand, the fastest {best['seconds']:.3f} s in {best['parts']} parts"
        )
    ours, hand = row["memfit"], row.get("hand")
    outcome = ours.get("failed") or ("refused" if "refused" in ours else f"{ours['seconds']:.3f} s")
    theirs = "none" if hand is None else f"{hand['seconds']:.3f} s ({hand['parts']} parts, {hand['recomputed']})"
    return (
        f"{head} {row['budget']:2} % {text(row['cap']):>8}: memfit {outcome}, hand {theirs}, ratio {row.get('ratio')}; "
        f"{ours.get('planning_seconds')} s, {ours.get('trials')} trials: {ours.get('plan', '')}"
    )


def summary(found: list[dict[str, Any]]) -> str:
    """Outcomes and ratios of a file."""
    planned = [row for row in found if "memfit" in row]
    ratios = sorted(row["ratio"] for row in planned if "ratio" in row)
    failed = sum("failed" in row["memfit"] for row in planned)
    refused = [row for row in planned if "refused" in row["memfit"]]
    lines = [line(row) for row in found]
    if ratios:
        near = sum(ratio >= 0.95 for ratio in ratios)
        lines.append(
            f"ratio to the best by hand: median {statistics.median(ratios):.2f}, least {ratios[0]:.2f}; {near} of "
            f"{len(ratios)} at 0.95 or more (target: all)"
        )
        trials = [row["memfit"]["trials"] for row in planned if "trials" in row["memfit"]]
        lines.append(f"trials: at most {max(trials)}, none in {trials.count(0)} of {len(trials)}")
    lines.append(
        f"{len(planned)} rows: {failed} killed or failed (target: none), {len(refused)} refused, of which "
        f"{sum('hand' in row for row in refused)} could be trained by hand"
    )
    return "\n".join(lines)


def put(row: dict[str, Any], path: Path) -> None:
    """Adds a row; one of the same question is replaced."""
    keys = ("backend", "model", "batch_size", "budget")
    old = [json.loads(one) for one in path.read_text().splitlines()] if path.exists() else []
    kept = [one for one in old if any(one.get(key) != row.get(key) for key in keys)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in [*kept, row]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="of prediction_models.py")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--batch", choices=("small", "middle", "large"), default="middle")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--pages", action="store_true")
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--known-grid", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print("ROW " + json.dumps(measure(Job(**json.loads(given.job)))))
        return
    if given.summary:
        for path in given.summary:
            print(summary([json.loads(one) for one in path.read_text().splitlines()]))
        return
    os.environ["KERAS_BACKEND"] = given.backend
    out = given.out or Path(__file__).parent / "results" / f"planning-{given.backend}.jsonl"
    for name in given.models:
        asked = next((one for one in (largest, pages, groups, xla) if getattr(given, one.__name__)), None)
        if asked is not None:
            found = iter([asked(name, given.backend)])
        else:
            found = rows(name, given.batch, given.budgets, given.backend, known=out if given.known_grid else None)
        for row in found:
            put(row, out)
            print(line(row), flush=True)
    print(summary([json.loads(one) for one in out.read_text().splitlines()]))


if __name__ == "__main__":
    main()
