"""Run as a program: forks daemons that are stopped before they begin (see `daemons.Nursery`)."""

from __future__ import annotations

import os
import signal
import sys

import boundd.composition.run  # noqa: F401 - imported here, so that no daemon has to
from boundd.__main__ import main


def serve() -> None:
    """A line is a request: folder, log, arguments, with NULs between. Answers the pid, and later the exit code."""
    for line in sys.stdin.buffer:
        folder, log, *arguments = line.decode().rstrip("\n").split("\0")
        pid = os.fork()
        if pid == 0:
            become(folder, log, arguments)
        os.waitpid(pid, os.WUNTRACED)
        os.write(1, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(folder: str, log: str, arguments: list[str]) -> None:
    """In the child: wait to be let go, then be `boundd` with these arguments."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 64)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
        sys.argv = ["boundd", *arguments]
        os.kill(os.getpid(), signal.SIGSTOP)
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
