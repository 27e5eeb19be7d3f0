"""``memfit doctor``: mistakes seen in code with their bytes, bad set-ups, machines without /proc, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memfit.backends import surroundings
from memfit.cli import main
from memfit.examining import code, machine
from memfit.examining.findings import Finding

MIB = 2**20


def seen(tmp_path: Path, source: str) -> list[Finding]:
    path = tmp_path / "train.py"
    path.write_text(source)
    return code.examined(path)


@pytest.mark.parametrize(
    ("source", "what", "num_bytes"),
    [
        ("N, SIZE = 1, 2\nH = 224\nx = np.zeros((1000, H, H, 3))", "float64", 8 * 1000 * 224 * 224 * 3),
        ("x = np.random.rand(10_000, 2048)", "float64", 8 * 10_000 * 2048),
        ("y = keras.utils.to_categorical(y, num_classes=50_000)", "to_categorical", 400_000),
        ("y = to_categorical(y, 1000)", "to_categorical", 8000),
        ("x = x.astype('float64')", "float64", None),
        ("ds = ds.cache().batch(32)", "cache()", None),
        ("ds = ds.shuffle(len(ds)).batch(32)", "shuffle(len(dataset))", None),
        ("ds = ds.batch(32).shuffle(100)", "shuffle after batch", None),
        (
            "B = 64\nds = image_dataset_from_directory('d', image_size=(128, 128), batch_size=B).shuffle(10)",
            "shuffle after batch",
            10 * 64 * 128 * 128 * 3 * 4,
        ),
        ("keras.callbacks.TensorBoard(histogram_freq=1)", "histogram_freq", None),
        ("Data(workers=8, max_queue_size=100)", "108 whole batches", None),
        ("x = np.ones((10, 100), 'float32').astype('float64')", "10 x 100 float64", 8000),
    ],
)
def test_a_mistake_is_found_once_with_its_bytes_and_cure(
    tmp_path: Path, source: str, what: str, num_bytes: int | None
) -> None:
    (found,) = seen(tmp_path, source)
    assert what in found.what
    assert found.bytes == num_bytes
    assert found.cure
    assert found.where == f"train.py:{source.count(chr(10)) + 1}"


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A folder of ten images of two classes, and of what is none; only their names are looked at."""
    for number in range(10):
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.JPG").touch()
        (folder / f"{number}.txt").touch()
    (tmp_path / "images" / "of-no-class.png").touch()
    return "ds = keras.utils.image_dataset_from_directory('images', image_size=(64, 32), batch_size=4"


IMAGE = 64 * 32 * 3 * 4


@pytest.mark.parametrize(
    ("rest", "num_bytes"),
    [
        (")\nds = ds.cache()", 10 * IMAGE),
        (").prefetch(2)\nds = ds.cache().prefetch(2)", 10 * IMAGE),
        (", labels=None).cache()", 11 * IMAGE),
        (", color_mode='grayscale').cache()", 10 * IMAGE // 3),
        (", validation_split=0.25, subset='training').cache()", 8 * IMAGE),
        (").take(1).cache()", 4 * IMAGE),
        (").unbatch()\nds = ds.shuffle(len(ds))", 10 * IMAGE),
        (").shuffle(2)", 8 * IMAGE),
        (").shuffle(100)", 10 * IMAGE),
    ],
)
def test_a_pipeline_of_images_is_followed_to_what_it_holds(
    tmp_path: Path, images: str, rest: str, num_bytes: int
) -> None:
    (found,) = seen(tmp_path, images + rest)
    assert found.bytes == num_bytes
    assert f"images of 64 x 32 x {1 if 'grayscale' in rest else 3} float32" in found.what


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        (").map(f).cache()", ": 10 images of 64 x 32 x 3 float32, 240 KiB, as they are loaded, before map"),
        (
            ", validation_split=SHARE, subset='training').cache()",
            ": 24 KiB for each image of 64 x 32 x 3 float32, 23.4 MiB ",
        ),
        (").filter(f).cache()", ": 24 KiB for each image"),
        (").filter(f).foo().cache()", ": its samples, times the bytes of one, which the code does not tell"),
        (").batch(2).cache()", ": its samples, times the bytes of one, which the code does not tell"),
        (")\nif some: ds = other\nds.cache()", ": its samples, times"),
        (")\nfor one in two:\n  ds.cache()\n  ds = other", ": its samples, times"),
        (")\ndef f():\n  ds = other\n  ds.cache()", ": its samples, times"),
    ],
)
def test_what_is_not_told_is_left_open_and_what_is_known_is_said(
    tmp_path: Path, images: str, rest: str, text: str
) -> None:
    (found,) = seen(tmp_path, images + rest)
    assert found.bytes is None
    assert text in found.what


@pytest.mark.parametrize(
    ("source", "text", "num_bytes"),
    [
        ("ds.batch(32).shuffle(100)", ": 3200 samples, times the bytes of one, which the code does not tell", None),
        ("ds.batch(8).foo().shuffle(100)", "after batch: whole batches are held", None),
        ("ds.batch(n).shuffle(100)", ": its samples, times", None),
        ("from_tensor_slices((np.ones((50, 8), 'float32'), y)).cache()", ": 50 samples of 8 float32", 50 * 8 * 4),
        (
            "x = np.zeros((1024, 1000), 'uint8')\nds.from_tensor_slices(x).shuffle(len(x))",
            ": 1024 samples of 1000 uint8",
            1024 * 1000,
        ),
        (
            "image_dataset_from_directory('/nowhere', batch_size=None).shuffle(10_000)",
            "a large buffer in memory: 10000 images of 256 x 256 x 3 float32",
            10_000 * 256 * 256 * 3 * 4,
        ),
        (
            "TensorBoard(histogram_freq=1)",
            "280 bytes for each number of the largest weight (267 MiB for each million)",
            None,
        ),
        (
            "e = [Embedding(100, 8), Embedding(5000, output_dim=16)]\nTensorBoard(histogram_freq=1)",
            "(seen: Embedding(5000, 16))",
            280 * 5000 * 16,
        ),
        ("Data(workers=8, max_queue_size=100)", ": its samples, times the bytes of one", None),
        ("Data(batch_size=32, max_queue_size=100)", ": 3232 samples, times", None),
        (
            "Data(batch_size=4, image_size=(64, 64), max_queue_size=99)",
            ": 400 samples of 64 x 64 float32, 6.2 MiB, for each channel and if that is their dtype",
            None,
        ),
        (
            "Data(batch_size=4, shape=(64, 64, 3), dtype='uint8', max_queue_size=99)",
            ": 400 samples of 64 x 64 x 3 uint8",
            400 * 64 * 64 * 3,
        ),
        (
            "g = gen.flow_from_directory('d', target_size=(8, 8))\nmodel.fit(g, workers=100)",
            ": 3520 images of 8 x 8 x 3 float32",
            3520 * 8 * 8 * 3 * 4,
        ),
        ("x.astype('float64')", "anyway: 8 bytes a number", None),
    ],
)
def test_findings_name_bytes_or_what_they_are_made_of(
    tmp_path: Path, source: str, text: str, num_bytes: int | None
) -> None:
    (found,) = seen(tmp_path, source)
    assert text in found.what
    assert found.bytes == num_bytes


@pytest.mark.parametrize(
    "source",
    [
        "x = np.zeros((1000, 224, 224, 3), 'float32')",
        "ds = image_dataset_from_directory('d', batch_size=None).shuffle(500)",
        "ds = ds.shuffle(100_000)",
        "x = np.zeros((1000, 224, 224, 3), dtype=np.uint8)",
        "x = np.zeros((10, 10))",
        "x = np.zeros((n, 224, 224, 3))",
        "y = to_categorical(y, 10)",
        "ds = ds.cache('/tmp/cache').shuffle(1000).batch(32)",
        "keras.callbacks.TensorBoard(histogram_freq=0)",
        "Data(workers=4, max_queue_size=10)",
        "x = x.astype('float32')",
        "random.shuffle(names)",
        "f = functools.cache(f)",
        "@functools.cache\ndef f(): pass",
    ],
)
def test_what_is_no_mistake_is_left_alone(tmp_path: Path, source: str) -> None:
    assert seen(tmp_path, source) == []


def test_the_code_is_not_run_nor_its_packages_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "explosive"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "train.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert code.file_of_module("explosive.train") == package / "train.py"
    assert code.examined(package / "train.py") == []


@pytest.mark.parametrize("arguments", [["/nowhere.py"], ["-m", "no.such.module"], ["x.py", "-m", "x"], ["-m", ".."]])
def test_what_cannot_be_read_is_refused_in_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_python_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"def (", b"\x00\x01", b"\xff\xfe"):
        (tmp_path / "broken.py").write_bytes(content)
        assert main(["doctor", str(tmp_path / "broken.py")]) == 2


def test_exit_codes_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "examined", lambda: [Finding("fact", "all well")])
    (tmp_path / "bad.py").write_text("ds.cache()")
    (tmp_path / "good.py").write_text("pass")
    assert main(["doctor", str(tmp_path / "good.py")]) == 0
    assert "Nothing to mend" in capsys.readouterr().out
    assert main(["doctor", "--json", str(tmp_path / "bad.py")]) == 1
    assert json.loads(capsys.readouterr().out)["warnings"] == 1


def test_a_machine_without_proc_is_said_to_have_none(tmp_path: Path) -> None:
    found = machine.examined(root=tmp_path)
    assert any("No /proc on this system" in one.what and one.kind == "note" for one in found)
    assert all(one.bytes is None or one.bytes > 0 for one in found)


def test_a_machine_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert any("No NVIDIA GPU that can be asked" in one.what for one in machine.examined())


@pytest.mark.parametrize(
    ("environment", "installed", "text", "serious"),
    [
        ({"KERAS_BACKEND": "jax"}, {"keras": "3.15", "torch": "2"}, "jax, which is not installed", True),
        ({"TF_USE_LEGACY_KERAS": "1"}, {"keras": "3.15", "tensorflow": "2"}, "Keras 2", True),
        ({}, {"keras": "3.9.1", "tensorflow": "2"}, "older than memfit supports", True),
        ({}, {"keras": "3.15"}, "No framework", True),
        ({"TF_ENABLE_ONEDNN_OPTS": "0"}, {"tensorflow": "2"}, "oneDNN is off", False),
        ({"KERAS_BACKEND": "jax"}, {"jax": "0.10"}, "75 % of the GPU", False),
        ({}, {"tensorflow": "2"}, "nearly the whole GPU", False),
        ({"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}, {"torch": "2"}, "hides the GPU", False),
    ],
)
def test_bad_set_ups_are_known(
    environment: dict[str, str], installed: dict[str, str], text: str, serious: bool
) -> None:
    found = surroundings.troubles(environment, installed, has_gpu=True)
    (one,) = [one for one in found if text in one.what]
    assert one.cure
    assert one.serious is serious


def test_the_doctor_imports_no_framework() -> None:
    program = (
        "import sys; from memfit.cli import main; main(['doctor']); "
        "print({'keras', 'torch', 'jax', 'tensorflow'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("set()")
