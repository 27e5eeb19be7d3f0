"""``memfit run`` as a user runs it: nothing of a script's behaviour changes, and a kill costs no work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from memfit.probing.cages import ONE_BY_ONE
from memfit.probing.capped import run_capped

SCRIPT = Path(__file__).with_name("supervised_script.py")
RUN = [sys.executable, "-m", "memfit", "run"]

SEEN = """
import os, signal, sys
print(__name__, sys.argv, sys.path[0], os.getcwd(), sys.stdin.read(), "__main__" in sys.modules, __file__)
print("to stderr", file=sys.stderr)
way = sys.argv[1] if len(sys.argv) > 1 else ""
if way == "raises":
    def inner():
        raise ValueError("of the script's own")
    inner()
elif way == "interrupted":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    import time; time.sleep(5)
elif way == "terminated":
    os.kill(os.getpid(), signal.SIGTERM)
elif way == "crashes":
    signal.raise_signal(signal.SIGSEGV)
elif way == "exits":
    sys.exit(7)
"""


def ran(command: list[str], folder: Path) -> tuple[int, str, str]:
    run = subprocess.run(command, cwd=folder, input="read", capture_output=True, text=True, timeout=120, check=False)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize("way", ["", "raises", "interrupted", "terminated", "exits", "crashes"])
def test_a_script_behaves_as_under_python(way: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "seen.py").write_text(SEEN)
    arguments = [os.path.join("sub", "seen.py"), *([way, "--budget", "-m"] if way else [])]
    code, stdout, stderr = ran([sys.executable, *arguments], tmp_path)
    if way == "crashes":
        code = 139  # the supervisor does not crash itself
    assert ran([*RUN, *arguments], tmp_path) == (code, stdout, stderr)


@pytest.mark.parametrize("way", ["", "exits"])
def test_a_module_behaves_as_under_python(way: str, tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    expected = ran([sys.executable, "-m", "seen", way], tmp_path)
    assert ran([*RUN, "-m", "seen", way], tmp_path) == expected


def test_a_script_that_is_not_there_is_pythons_error(tmp_path: Path) -> None:
    assert ran([*RUN, "missing.py"], tmp_path) == ran([sys.executable, "missing.py"], tmp_path)


def environment_of(backend: str, environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def values(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.timeout(600)
def test_a_killed_script_goes_on_and_ends_as_undisturbed(
    backend: str, environment: dict[str, str], tmp_path: Path
) -> None:
    env = environment_of(backend, environment)
    plain = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "plain.npz")],
        env=env,
        capture_output=True,
        timeout=250,
        check=False,
    )
    assert plain.returncode == 3, plain.stderr.decode()
    killed = subprocess.run(
        [*RUN, str(SCRIPT), str(tmp_path / "killed.npz"), "kills"],
        env=env, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert (killed.returncode, killed.stdout) == (3, "done\n"), killed.stderr
    assert killed.stderr.count("ended by SIGKILL") == 2
    for one, other in zip(values(tmp_path / "plain.npz"), values(tmp_path / "killed.npz"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.timeout(600)
def test_a_script_that_the_kernel_kills_for_memory_goes_on(environment: dict[str, str], tmp_path: Path) -> None:
    env = environment_of("torch", environment)
    found = {}
    for way, command in (("", [sys.executable]), ("grows", RUN)):
        out = tmp_path / f"out{way}.npz"
        found[way] = run_capped([*command, str(SCRIPT), str(out), way], 2**30, env=env, timeout=280)
        assert found[way].returncode == 3, "\n".join((str(found[way]), *found[way].tail))
    assert sum("ended by SIGKILL" in line for line in found["grows"].tail) == 2, found["grows"].tail
    for one, other in zip(values(tmp_path / "out.npz"), values(tmp_path / "outgrows.npz"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


ATTEMPTED = """
import sys
import keras, numpy as np
from memfit.predicting import Predictions
from memfit.records import Estimate

Predictions.peak = Predictions.crude = lambda *_: Estimate(2**30, 2**28, "scripted")  # more than the cap with its margin

class Grows(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        print("training", flush=True)
        if len(sys.argv) > 1:
            self.held = np.ones(4 * 2**30, "uint8")

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=1, verbose=2, callbacks=[Grows()])
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["", "grows"])
def test_what_is_not_predicted_to_fit_is_attempted_once(way: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "attempted.py").write_text(ATTEMPTED)
    command = [*RUN, str(tmp_path / "attempted.py"), *([way] if way else [])]
    ended = run_capped(command, 2**30, env=environment_of("torch", environment), timeout=280, cages=ONE_BY_ONE)
    assert ended.returncode == (1 if way else 0), ended.tail
    assert ended.tail.count("training") == 1
    said = [line for line in ended.tail if line.startswith("memfit: ")]
    assert "the whole batch is predicted to need 1 GiB" in said[0]
    if not way:
        return
    assert "ended by SIGKILL" in said[2]
    assert ended.tail[-1].startswith(
        "memfit.errors.DoesNotFitError: Training does not fit: the whole batch needs 1.2 GiB"
    )
    assert ended.tail[-1].endswith("(the whole batch), and was ended for want of memory.")


@pytest.mark.timeout(400)
def test_a_script_that_dies_outside_of_fit_is_told_what_of(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text("import numpy as np\nx = np.ones((4000, 25_000)).astype('float64')\n")
    ended = run_capped([*RUN, str(tmp_path / "wide.py")], 512 * 2**20, timeout=120, cages=ONE_BY_ONE)
    said = [line for line in ended.tail if line.startswith("memfit: ")]
    assert ended.returncode == 137
    assert "outside of fit, evaluate and predict" in said[0]
    assert "wide.py:2" in said[1]
    assert "float64" in said[1]


def test_sigterm_leaves_a_snapshot_and_the_same_command_goes_on(environment: dict[str, str], tmp_path: Path) -> None:
    env, folder = environment_of("torch", environment), tmp_path / "snapshots"
    command = [*RUN, "--snapshots", str(folder), str(SCRIPT), str(tmp_path / "out.npz"), "waits"]
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "training\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == -signal.SIGTERM
    run.stdout.close()
    assert list(folder.glob("call-000/snapshot-*.npz"))
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    # The third step of the first call is not made again.
    assert (again.returncode, again.stdout) == (0, "training\ndone\n"), again.stderr
    assert not folder.exists()


@pytest.mark.timeout(200)
def test_a_killed_supervisor_leaves_no_child(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    run = subprocess.Popen(
        [*RUN, "--snapshots", str(tmp_path / "kept"), str(tmp_path / "script.py")],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    (child,) = psutil.Process(run.pid).children()
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
