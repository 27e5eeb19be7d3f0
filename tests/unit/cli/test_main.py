"""The command line itself: parsing, versions, errors in a line. No framework, no children."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import memfit
from memfit import cli
from memfit.cli import demo
from memfit.errors import DoesNotFitError, MemfitError


def parsed(*argv: str) -> Any:
    return cli.parser().parse_args(["demo", *argv])


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"memfit {memfit.__version__}\n"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_every_command_is_shown_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    for command in cli.COMMANDS:
        assert command.NAME in help_text
        assert command.HELP in help_text


def test_the_module_runs_as_the_command_does() -> None:
    run = subprocess.run([sys.executable, "-m", "memfit", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"memfit {memfit.__version__}\n"


def test_importing_the_command_line_imports_no_framework() -> None:
    code = (
        "import sys, memfit.cli, memfit.cli.demo_training\n"
        "print([name for name in ('tensorflow', 'jax', 'torch', 'keras') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_demo_has_defaults() -> None:
    arguments = parsed()
    assert arguments.command is demo
    assert (arguments.backend, arguments.keep, arguments.json) == (None, None, False)
    assert arguments.cap == 2 * 2**30
    assert min(arguments.batch_size, arguments.epochs, arguments.images) >= 1


def test_demo_takes_its_options() -> None:
    arguments = parsed(
        *["--backend", "jax", "--cap", "900 MiB", "--batch-size", "96", "--epochs", "2", "--images", "500"],
        *["--keep", "folder", "--json"],
    )
    assert (arguments.backend, arguments.cap, arguments.batch_size) == ("jax", 900 * 2**20, 96)
    assert (arguments.epochs, arguments.images, arguments.keep, arguments.json) == (2, 500, "folder", True)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--epochs", "0"], "--epochs: must be a whole number from 1. Received: '0'"),
        (["--batch-size", "-3"], "--batch-size: must be a whole number from 1. Received: '-3'"),
        (["--images", "many"], "--images: must be a whole number from 1. Received: 'many'"),
        (["--cap", "much"], "--cap: A number of bytes is written like '12 GiB', '800 MB' or '4096'. Received: 'much'"),
        (["--cap", "0 GiB"], "--cap: must be more than 0 bytes. Received: '0 GiB'"),
        (["--backend", "theano"], "--backend: invalid choice: 'theano'"),
    ],
)
def test_what_cannot_be_parsed_is_named(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *argv])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemfitError("No framework.\nInstall one."), "memfit demo: No framework. Install one.\n"),
        (DoesNotFitError("One sample needs 3 GiB."), "memfit demo: One sample needs 3 GiB.\n"),
    ],
)
def test_errors_of_memfit_are_one_line_and_exit_code_2(
    error: MemfitError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: Any) -> int:
        raise error

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr() == ("", line)


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "memfit demo: interrupted\n")


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])
