"""The demo with faked children: what it makes, runs, shows and returns."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from memfit import cli, units
from memfit.budgeting.ceiling import Ceiling
from memfit.cli import demo, demo_progress, demo_report, demo_runs, demo_training
from memfit.cli.demo_runs import Cap, DemoRun
from memfit.cli.demo_training import Task
from memfit.errors import ArgumentError, MemfitError
from memfit.probing.capped import CappedRun

MIB = 2**20
CAP = Cap(1536 * MIB, "cgroup v1 memory limit", watched=False)
PLAN = "memfit: each batch of 256 goes through in micro-batches of 64 (4 parts), one update a batch"
RUNS = (
    DemoRun("shallow", "plain", "killed by the cap", 1536 * MIB, 9.14),
    DemoRun("shallow", "memfit", "finished", 1331 * MIB, 31.4, 0.4925, 64, PLAN, 1400 * MIB, 1530 * MIB, 2.5),
    DemoRun("deeper", "plain", "killed by the cap", 1536 * MIB, 10.2),
    DemoRun("deeper", "memfit", "finished", 1340 * MIB, 40.0, 0.54, 48, PLAN, 1450 * MIB, 1530 * MIB, 3.5),
)


def report(*runs: DemoRun) -> demo_report.DemoReport:
    return demo_report.DemoReport("tensorflow", CAP, 256, 4, 1600, 400, runs or RUNS)


def done(**values: Any) -> str:
    return "@memfit-demo " + json.dumps({"kind": "done", **values})


class Children:
    """Stands for ``run_capped``: plain Keras is killed, memfit finishes, unless told otherwise."""

    def __init__(self, **endings: tuple[int, bool]) -> None:
        self.endings = {"plain": (137, True), "memfit": (0, False), **endings}
        self.calls: list[dict[str, Any]] = []

    def __call__(self, argv: Sequence[str], cap_bytes: int, **options: Any) -> CappedRun:
        task = vars(demo_training._task(argv[3:])) if "-m" in argv else None
        self.calls.append({"argv": list(argv), "task": task, "cap": cap_bytes, **options})
        returncode, killed = self.endings[task["way"]] if task else (0, False)
        lines = ["noise of a framework"]
        if task and not returncode:
            lines += [PLAN, done(accuracy=0.5, micro_batch_size=64, plan=PLAN)]
        for line in lines:
            if options.get("on_output"):
                options["on_output"]("stdout", line)
        return CappedRun(returncode, killed, False, cap_bytes, 1400 * MIB, 12.5, CAP.mechanism, tuple(lines))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """Faked children, on a machine with room, where every backend is installed."""
    fake = Children()
    use(fake, monkeypatch)
    return fake


def use(fake: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    run = demo_runs.run
    monkeypatch.setattr(demo_runs, "run_capped", fake)
    monkeypatch.setattr(demo_runs, "run", lambda *args, **options: run(*args, capped=fake, **options))
    monkeypatch.setattr(demo_runs.host, "host_ceiling", lambda: Ceiling(64 * 2**30, "a large machine"))
    monkeypatch.setattr(demo, "_is_installed", lambda name: True)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")


ARGV = ["demo", "--images", "60", "--batch-size", "40", "--epochs", "3"]


def test_every_model_is_trained_both_ways_under_the_same_cap(children: Children) -> None:
    assert cli.main([*ARGV, "--backend", "torch", "--cap", "1 GiB"]) == 0
    probe, *calls = children.calls
    assert probe["task"] is None
    assert [(call["task"]["model"], call["task"]["way"]) for call in calls] == [
        ("shallow", "plain"),
        ("shallow", "memfit"),
        ("deeper", "plain"),
        ("deeper", "memfit"),
    ]
    assert {call["cap"] for call in calls} == {2**30}
    assert {(call["task"]["batch_size"], call["task"]["epochs"], call["task"]["budget"]) for call in calls} == {
        (40, 3, None)
    }
    assert len({call["task"]["directory"] for call in calls}) == 1
    assert {call["env"]["KERAS_BACKEND"] for call in calls} == {"torch"}
    assert all(call["timeout"] > 0 for call in calls)


def test_the_children_have_the_images_and_nothing_is_left(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    call = Children.__call__

    def looking(self: Children, argv: Sequence[str], cap_bytes: int, **options: Any) -> CappedRun:
        ended = call(self, argv, cap_bytes, **options)
        if self.calls[-1]["task"]:
            folder = pathlib.Path(self.calls[-1]["task"]["directory"])
            seen.append((folder, len(list(folder.glob("*/*.jpg"))), len(list(folder.iterdir()))))
        return ended

    monkeypatch.setattr(Children, "__call__", looking)
    cli.main(ARGV)
    assert {(images, classes) for _, images, classes in seen} == {(60, 10)}
    assert not seen[0][0].exists()


def test_keep_leaves_the_images(children: Children, tmp_path: pathlib.Path) -> None:
    assert cli.main([*ARGV, "--keep", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("*/*.jpg"))) == 60


def test_keep_writes_into_no_folder_that_holds_something(
    children: Children, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert cli.main([*ARGV, "--keep", str(tmp_path)]) == 2
    assert "must be new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_json_is_all_that_is_on_standard_output(children: Children, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ARGV, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert (document["backend"], document["cap_bytes"], document["as_promised"]) == ("tensorflow", 2048 * MIB, True)
    assert (document["num_training"], document["num_validation"]) == (50, 10)
    assert "shallow, plain Keras: killed by the cap" in captured.err
    assert PLAN in captured.err


def test_table_is_on_standard_output(children: Children, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(ARGV) == 0
    out = capsys.readouterr().out
    assert "Final accuracy" in out
    assert "plain Keras was killed and memfit finished" in out


@pytest.mark.parametrize(
    ("endings", "sentence"),
    [
        ({"plain": (0, False)}, "plain Keras on the shallow model finished with a peak of 1.4 GiB"),
        ({"memfit": (137, True)}, "memfit on the deeper model was killed by the cap of 2 GiB"),
        ({"memfit": (1, False)}, "memfit on the deeper model failed (exit code 1: noise of a framework)"),
        ({"plain": (1, False)}, "plain Keras on the shallow model failed (exit code 1: noise of a framework)"),
    ],
)
def test_another_outcome_is_exit_code_1_and_a_sentence(
    endings: dict[str, tuple[int, bool]],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(Children(**endings), monkeypatch)
    assert cli.main(ARGV) == 1
    out = capsys.readouterr().out
    assert "Not as it should be: " in out
    assert sentence in out


def test_too_little_memory_is_said_before_anything_is_made(
    children: Children, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_runs.host, "host_ceiling", lambda: Ceiling(900 * MIB, "MemAvailable"))
    assert cli.main(ARGV) == 2
    error = capsys.readouterr().err
    assert "may take 2 GiB each, and this machine has" in error
    assert "--cap" in error
    assert error.count("\n") == 1
    assert not children.calls


@pytest.mark.parametrize("images", [9, 49, 57, 255, 300])
def test_images_that_fill_no_batch_are_refused_and_the_least_number_is_named(
    images: int, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    batch_size = 250 if images > 100 else 48
    assert cli.main(["demo", "--images", str(images), "--batch-size", str(batch_size)]) == 2
    error = capsys.readouterr().err
    least = int(error.rsplit("--images=", 1)[1].split()[0])
    assert demo._checked_num_validation(least, batch_size) == least // 5


def test_held_out_images_are_counted_as_the_folder_is_split(tmp_path: pathlib.Path) -> None:
    import numpy as np

    from memfit.data import shuffling

    for images in (60, 63, 118, 400):
        labels = np.arange(images) % 10
        _, validation = shuffling.split(labels, validation_split=demo_training.VALIDATION_SPLIT, seed=0)
        assert demo._checked_num_validation(images, 8) == len(validation)


def test_sigterm_ends_the_demo_as_ctrl_c_does(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    folders = []

    def terminated(self: Children, argv: Sequence[str], cap_bytes: int, **options: Any) -> CappedRun:
        if "-m" in argv:
            folders.append(pathlib.Path(demo_training._task(argv[3:]).directory))
            os.kill(os.getpid(), signal.SIGTERM)
        return CappedRun(0, False, False, cap_bytes, 0, 0.0, CAP.mechanism, ())

    monkeypatch.setattr(Children, "__call__", terminated)
    assert cli.main(ARGV) == 130
    assert len(folders) == 1
    assert not folders[0].exists()
    assert signal.getsignal(signal.SIGTERM) is before


class TestBackend:
    def test_the_one_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "_is_installed", lambda name: True)
        monkeypatch.setenv("KERAS_BACKEND", "torch")
        assert demo.chosen_backend("jax") == "jax"
        assert demo.chosen_backend(None) == "torch"

    def test_the_first_that_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KERAS_BACKEND", raising=False)
        monkeypatch.setattr(demo, "_is_installed", lambda name: name in ("torch", "jax"))
        assert demo.chosen_backend(None) == "jax"

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KERAS_BACKEND", raising=False)
        monkeypatch.setattr(demo, "_is_installed", lambda name: False)
        with pytest.raises(MemfitError, match=r'pip install "memfit\[tensorflow\]"'):
            demo.chosen_backend(None)
        with pytest.raises(MemfitError, match=r'jax is not installed. Install it: pip install "memfit\[jax\]"'):
            demo.chosen_backend("jax")

    def test_one_that_cannot_train(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KERAS_BACKEND", "openvino")
        with pytest.raises(ArgumentError, match="Received: KERAS_BACKEND='openvino'"):
            demo.chosen_backend(None)


class TestRun:
    TASK = Task("folder", "shallow", "memfit", 256, 4)

    def test_memfit_is_told_the_cap_where_no_limit_can_be_read(self) -> None:
        fake = Children()
        watched = Cap(1536 * MIB, "watcher", watched=True)
        for way in ("plain", "memfit"):
            task = Task("folder", "shallow", way, 256, 4)
            demo_runs.run(task, watched, backend="jax", display=demo_progress.Lines(io.StringIO()), capped=fake)
        assert [call["task"]["budget"] for call in fake.calls] == [None, 1536 * MIB]

    def test_what_the_child_reports_is_in_the_record(self) -> None:
        result = demo_runs.run(
            self.TASK, CAP, backend="jax", display=demo_progress.Lines(io.StringIO()), capped=Children()
        )
        assert result == DemoRun("shallow", "memfit", "finished", 1400 * MIB, 12.5, 0.5, 64, PLAN)

    def test_a_child_that_ends_well_without_a_result_has_failed(self) -> None:
        def silent(argv: Sequence[str], cap_bytes: int, **options: Any) -> CappedRun:
            return CappedRun(0, False, False, cap_bytes, 5, 1.0, CAP.mechanism, ())

        result = demo_runs.run(self.TASK, CAP, backend="jax", display=demo_progress.Lines(io.StringIO()), capped=silent)
        assert (result.outcome, result.last_words) == ("failed", "exit code 0: it said nothing")

    def test_a_child_that_takes_for_ever_has_failed(self) -> None:
        def slow(argv: Sequence[str], cap_bytes: int, **options: Any) -> CappedRun:
            return CappedRun(137, False, True, cap_bytes, 5, 1800.0, CAP.mechanism, ())

        result = demo_runs.run(self.TASK, CAP, backend="jax", display=demo_progress.Lines(io.StringIO()), capped=slow)
        assert (result.outcome, result.last_words) == ("failed", "it was ended after 1800 s")

    def test_children_train_on_the_cpu(self) -> None:
        environment = demo_runs.environment("torch", {"PATH": "/bin", "KERAS_BACKEND": "jax"})
        assert environment["KERAS_BACKEND"] == "torch"
        assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
        assert environment["PATH"] == "/bin"

    def test_progress_is_shown_as_it_comes(self) -> None:
        shown: list[Any] = []

        class Recording:
            def say(self, line: str) -> None:
                shown.append(line)

            @contextlib.contextmanager
            def run(self, doing: str) -> Iterator[None]:
                shown.append(doing)
                yield

            def advance(self, done: int, total: int) -> None:
                shown.append((done, total))

        def training(argv: Sequence[str], cap_bytes: int, **options: Any) -> CappedRun:
            for line in (
                "memfit: analysing the step ...",
                "7/7 - 9s - accuracy: 0.5200",
                '@memfit-demo {"kind": "batch", "done": 3, "total": 28}',
                '@memfit-demo {"kind": "epoch", "epoch": 1, "accuracy": 0.26}',
                done(accuracy=0.26),
            ):
                options["on_output"]("stdout", line)
            return CappedRun(0, False, False, cap_bytes, 3 * MIB, 12.0, CAP.mechanism, ())

        demo_runs.run(self.TASK, CAP, backend="jax", display=Recording(), capped=training)
        assert shown == [
            "shallow, memfit",
            "  memfit: analysing the step ...",
            (3, 28),
            "  epoch 1: accuracy 26% on held-out images",
            "shallow, memfit: finished after 12 s, peak 3 MiB, accuracy 26%",
        ]


class TestTask:
    def test_survives_the_command_line(self) -> None:
        for budget in (None, 2**30):
            task = Task("a folder", "deeper", "memfit", 64, 2, budget)
            argv = task.argv()
            assert argv[:3] == [sys.executable, "-m", "memfit.cli.demo_training"]
            assert "--way=memfit" in argv
            taken: list[Task] = []
            demo_training.main(argv[3:], do=taken.append)
            assert taken == [task]

    def test_events_are_told_from_other_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        demo_training._send("batch", done=1, total=2)
        events = [demo_training.event_in(line) for line in capsys.readouterr().out.splitlines()]
        assert events == [None, {"kind": "batch", "done": 1, "total": 2}]


class TestReport:
    def test_table(self) -> None:
        stream = io.StringIO()
        demo_report.show(report(), stream)
        lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
        assert [line for line in lines if line and not set(line) <= {"─", " "}] == [
            "4 epochs in batches of 256 on tensorflow, under a cap of 1.5 GiB",
            "Model Way Outcome Peak memory Seconds Final accuracy Micro-batch",
            "shallow plain Keras killed by the cap 1.5 GiB 9.1 - -",
            "shallow memfit finished 1.3 GiB 31.4 49.2% 64",
            "deeper plain Keras killed by the cap 1.5 GiB 10.2 - -",
            "deeper memfit finished 1.3 GiB 40.0 54.0% 48",
            "Cap: 1.5 GiB, held by a cgroup v1 memory limit; 1600 images to train on, accuracy on 400 others.",
            f"shallow: {PLAN} (predicted peak: 1.4 GiB at most)",
            f"deeper: {PLAN} (predicted peak: 1.4 GiB at most)",
            "Under the same cap of 1.5 GiB plain Keras was killed and memfit finished, with the same data, batch size, "
            "epochs and seed.",
        ]
        assert not any(line.endswith("…") for line in lines)

    def test_json(self) -> None:
        document = json.loads(report().to_json())
        assert list(document) == [
            *["backend", "cap_bytes", "cap_mechanism", "batch_size", "epochs", "num_training", "num_validation"],
            *["runs", "as_promised", "verdict"],
        ]
        assert document["runs"][1] == {
            "model": "shallow",
            "way": "memfit",
            "outcome": "finished",
            "peak_bytes": 1331 * MIB,
            "seconds": 31.4,
            "accuracy": 0.4925,
            "micro_batch_size": 64,
            "plan": PLAN,
            "predicted_peak_bytes": 1400 * MIB,
            "budget_bytes": 1530 * MIB,
            "planning_seconds": 2.5,
            "last_words": None,
        }

    def test_all_that_was_different_is_said(self) -> None:
        finished = DemoRun("shallow", "plain", "finished", 1100 * MIB, 20.0, 0.5)
        failed = DemoRun("deeper", "memfit", "failed", 300 * MIB, 3.0, last_words="exit code 1: ImportError")
        verdict = report(finished, RUNS[1], RUNS[2], failed).verdict
        assert "plain Keras on the shallow model finished" in verdict
        assert "memfit on the deeper model failed (exit code 1: ImportError)" in verdict


class TestDisplay:
    def test_lines_where_there_is_no_terminal(self) -> None:
        stream = io.StringIO()
        display = demo_progress.display(stream)
        with display.run("drawing"):
            display.advance(1, 2)
            display.say("drawn [1/2]")
        assert stream.getvalue() == "drawing ...\ndrawn [1/2]\n"

    def test_bars_on_a_terminal(self) -> None:
        from rich.console import Console

        stream = io.StringIO()
        bars = demo_progress.Bars(Console(file=stream, force_terminal=True, width=80))
        with bars.run("training"):
            bars.advance(1, 2)
            bars.say("epoch 1: [50%]")
        bars.advance(2, 2)
        assert "training" in stream.getvalue()
        assert "epoch 1: [50%]" in stream.getvalue()


def test_cap_of_this_machine_is_named() -> None:
    cap = demo_runs.checked_cap(64 * MIB)
    assert cap.bytes == 64 * MIB
    assert cap.mechanism
    assert cap.watched == ("watcher" in cap.mechanism)
    assert units.text(cap.bytes) == "64 MiB"
