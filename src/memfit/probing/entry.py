"""What a capped child runs first: it puts itself under its limit, then becomes the command.

Started by ``capped.py`` as a file of its own, ``python -I -S entry.py FD PARENT FOLDER PROGRAM ARG0 ARG1...``, and
imports nothing of memfit, to be quick. What this process holds before it joins its group is charged to its parent's
group and gone once it has become the command. Linux only.

Done here rather than in a ``preexec_fn``, which runs Python between fork and exec and can deadlock in a program with
threads, as every training program is.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(status_fd: int, parent: int, folder: str, program: str, arguments: list[str]) -> None:
    """Joins the control group in ``folder`` (if that is not empty) and becomes ``program``.

    What fails is written to ``status_fd`` as "join REASON" or "exec REASON"; success closes it and writes nothing.
    """
    os.set_inheritable(status_fd, False)
    step = "join"
    try:
        end_with(parent)
        if folder:
            with open(os.path.join(folder, "cgroup.procs"), "w") as file:
                file.write(str(os.getpid()))
        step = "exec"
        be_first_victim()
        # Python ignores these two for itself, and what is ignored stays so in the command.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execv(program, arguments)
    except OSError as error:
        os.write(status_fd, f"{step} {error}".encode())
        os._exit(126)


def be_first_victim() -> None:
    """If memory runs out, the kernel is to kill this process and not the one that started it and goes on without it."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        # Sandboxes without the file have no such killer either.
        return


def end_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends: a killed notebook leaves none behind."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(126)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
