"""What a supervised script runs in: ``python script_child.py SESSION PARENT OPTIONS (-m MODULE | SCRIPT) [ARGS]``.

The script finds what it would find under ``python SCRIPT ARGS``: ``sys.argv``, ``sys.path[0]``, a ``__main__`` that is its
own, its exit code, its traceback, the signals as ever. Only ``keras.Model.fit`` is another, once the script imports Keras.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the script."""
    session, parent, options, *command = sys.argv[1:]
    own = sys.path.pop(0) if not sys.flags.safe_path else None  # this file's folder
    import json
    import signal

    from memfit.running import start

    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    start.prepare(session, int(parent), json.loads(options))
    if command[0] == "-m":
        sys.argv = command[1:]
        _run_module(command[1], first=None if own is None else os.getcwd())
    else:
        sys.argv = command
        _run_script(command[0], first=None if own is None else os.path.dirname(os.path.realpath(command[0])))


def _run_script(path: str, *, first: str | None) -> None:
    import types
    from importlib.machinery import SourceFileLoader

    if first is not None:
        sys.path.insert(0, first)
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(
            f"{sys.executable}: can't open file {os.path.abspath(path)!r}: [Errno {error.errno}] {error.strerror}",
            file=sys.stderr,
        )
        sys.exit(2)
    path = os.path.abspath(path)
    module = types.ModuleType("__main__")
    vars(module).update(__file__=path, __builtins__=__builtins__, __loader__=SourceFileLoader("__main__", path))
    sys.modules["__main__"] = module
    _as_python(lambda: exec(compile(source, path, "exec"), vars(module)))


def _run_module(name: str, *, first: str | None) -> None:
    import runpy
    import types

    if first is not None:
        sys.path.insert(0, first)
    sys.modules["__main__"] = types.ModuleType("__main__")
    # What ``python -m`` itself calls.
    _as_python(lambda: runpy._run_module_as_main(name))  # type: ignore[attr-defined]


def _as_python(run: object) -> None:
    """Errors end the process as Python's own would, without the frames of this file."""
    try:
        run()  # type: ignore[operator]
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - all of them are shown, as the interpreter does
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        if isinstance(error, KeyboardInterrupt):
            _end_by_interrupt()
        sys.exit(1)


def _end_by_interrupt() -> None:
    """As Python ends after an interrupt that nobody caught: by the signal, once everything is closed."""
    import atexit
    import signal

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
