"""Starting the worker: fork it first, tell it later what to execute.

The shim forks its worker before it does anything else, because after a fork every memory page that the shim had written
to before is copied when it is written to again. The forked process waits on its start pipe. The shim sends the command
through that pipe, or closes it, and then the process exits without having executed anything.
"""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH110, PTH112

from __future__ import annotations

import errno
import marshal
import os
from signal import SIGKILL
from typing import NamedTuple, NoReturn

from .kernel import PR_SET_PDEATHSIG, prctl, read_all, reset_oom_score, reset_signals, write_file

_LONGEST_PATH = 1000
_LONGEST_WORDS = 1000
PROGRAM, FOLDER = "program", "folder"


class Worker(NamedTuple):
    """A worker that waits: its pid, and the descriptors to deal with it."""

    pid: int
    output: int
    """To read what it says, without blocking."""
    error: int
    """To read why it could not be executed, without blocking; empty where it could."""
    start_pipe: int
    """To write what to execute."""


def fork_worker(lock: int) -> Worker:
    """Fork a worker that waits; it will hold the attempt's lock, of which `lock` is the descriptor.

    Raises:
        OSError: no process is to be had.
    """
    output, output_end = os.pipe()
    error, error_end = os.pipe()
    start_pipe, start_pipe_end = os.pipe()
    shim_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(start_pipe_end)
        _become_worker(shim_pid, lock, start_pipe, output_end, error_end)
    for descriptor in (output_end, error_end, start_pipe):
        os.close(descriptor)
    os.set_blocking(output, False)
    os.set_blocking(error, False)
    return Worker(pid, output, error, start_pipe_end)


def start_worker(worker: Worker, argv: list[str], env: dict[str, str], cwd: str, cgroup: str) -> None:
    """Have the worker execute `argv`; `cgroup` is the folder of the one that it is to begin in, or empty."""
    told = memoryview(marshal.dumps((argv, env, cwd, cgroup)))
    try:
        while told:
            told = told[os.write(worker.start_pipe, told) :]
    except BrokenPipeError:
        pass  # Somebody has ended it meanwhile: how will be seen as of any other worker.
    finally:
        os.close(worker.start_pipe)


def discard_worker(worker: Worker) -> None:
    """Have the worker end instead, and wait for that."""
    os.close(worker.start_pipe)
    os.waitpid(worker.pid, 0)


def _become_worker(shim_pid: int, lock: int, start_pipe: int, output: int, error: int) -> NoReturn:
    """In the child: wait to be let go, then execute what it is told."""
    argv, cwd = [""], ""
    try:
        reset_signals()
        os.setsid()
        prctl(PR_SET_PDEATHSIG, SIGKILL)
        # A shim that died before the line above took effect can't kill us any more.
        told = read_all(start_pipe) if os.getppid() == shim_pid else b""
        if not told:
            os._exit(127)
        argv, env, cwd, cgroup = marshal.loads(told)  # noqa: S302 - its own shim has written it
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.set_inheritable(lock, True)
        if cgroup:
            write_file(cgroup + "/cgroup.procs", b"0")
        reset_oom_score()
        os.chdir(cwd)
        _execute(argv, env)
    except BaseException as failure:
        os.write(error, _start_error(failure, argv, cwd))
    finally:
        os._exit(127)


def _execute(argv: list[str], env: dict[str, str]) -> None:
    if "/" in argv[0]:  # which `execvpe` finds out too, in some more pages
        os.execve(argv[0], argv, env)  # noqa: S606 - a shell is what this must not be
    os.execvpe(argv[0], argv, env)  # noqa: S606


def _start_error(error: BaseException, argv: list[str], cwd: str) -> bytes:
    """Why the worker could not be executed, for the shim: an error number, what it is about, its path, and words."""
    about, subject = _about(error, argv, cwd)
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        words = f"{argv[0] if argv else 'an empty command'}: {error}"
    elif about == FOLDER and not os.path.isdir(cwd):
        words = f"no such folder: {cwd}"
    elif number == errno.ENOENT and about == PROGRAM:
        # Of a script that is executable, the interpreter on its first line may be what is missing.
        words = f"no such file: {subject}, or the interpreter that it names"
        if not os.path.exists(subject):
            words = f"no such file: {subject}"
    else:
        words = f"{subject}: {os.strerror(number)}"
    told = [number, about, subject[:_LONGEST_PATH], words[:_LONGEST_WORDS]]
    return marshal.dumps([part.encode(errors="replace") if isinstance(part, str) else part for part in told])


def _about(error: BaseException, argv: list[str], cwd: str) -> tuple[str, str]:
    filename = getattr(error, "filename", None)
    if isinstance(filename, bytes):  # of the folders of PATH, as `execvpe` searches them
        filename = os.fsdecode(filename)
    if filename is not None and filename == cwd:
        return FOLDER, cwd
    if filename is None or (argv and filename == argv[0]) or (argv and filename.endswith("/" + argv[0])):
        return PROGRAM, argv[0] if argv else ""
    return "", str(filename)


def why_not_started(worker: Worker) -> tuple[int | None, str, str, str] | None:
    """Why a worker was not executed: error number, what it is about, its path, and words. None of one that was."""
    try:
        told = os.read(worker.error, 8192)
    except BlockingIOError:
        return None
    if not told:
        return None
    number, about, subject, words = marshal.loads(told)  # noqa: S302 - its own worker has written it
    return number, about.decode(errors="replace"), subject.decode(errors="replace"), words.decode(errors="replace")
