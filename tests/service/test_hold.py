"""Who holds a state folder. The other holders are processes of their own: a process' own locks don't stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boundd.ports import HeldError
from boundd.service.hold import LOCK_NAME, hold

HOLDS = """
import sys
from pathlib import Path
from boundd.service.hold import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(folder: Path) -> str:
    """Why the folder can't be held here."""
    with pytest.raises(HeldError) as caught, hold(folder):
        pass
    return str(caught.value)


def test_the_message_names_the_holder(tmp_path: Path) -> None:
    """By its pid, until it is gone."""
    with holder(tmp_path) as other:
        assert f"(pid {other.pid})" in refused(tmp_path)
    with hold(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_the_pid_is_the_kernel_s_not_the_file_s(tmp_path: Path) -> None:
    """Between taking the lock and writing its pid, a holder's predecessor is still in the file."""
    with holder(tmp_path) as other:
        for written in (f"{os.getppid()}\n", "", "rubbish", "4194303\n"):
            (tmp_path / LOCK_NAME).write_text(written)
            assert f"(pid {other.pid})" in refused(tmp_path), written


@pytest.mark.parametrize("replace", [False, True])
def test_a_deleted_file_frees_nothing(replace: bool, tmp_path: Path) -> None:
    """Whoever deletes the file, and whoever makes it anew, has not taken the state from its holder."""
    with holder(tmp_path) as other:
        (tmp_path / LOCK_NAME).unlink()
        if replace:
            (tmp_path / LOCK_NAME).write_text("1\n")
        assert f"(pid {other.pid})" in refused(tmp_path)
    with hold(tmp_path):
        pass


def test_links_lead_to_the_same_holder(tmp_path: Path) -> None:
    """The lock is the inode's."""
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to("state")
    with holder(tmp_path / "link") as other:
        assert f"(pid {other.pid})" in refused(tmp_path / "state")


def test_the_same_process_may_hold_it_again(tmp_path: Path) -> None:
    """Inside its own hold; and others are kept out until the outer one ends."""
    with hold(tmp_path):
        with hold(tmp_path):
            pass
        code = subprocess.run([sys.executable, "-c", HOLDS, str(tmp_path)], capture_output=True, text=True, check=False)
        assert f"(pid {os.getpid()})" in code.stderr
    with holder(tmp_path):
        pass


def test_a_lock_of_a_dead_daemon_is_waited_for(tmp_path: Path) -> None:
    """A child that has not yet closed what it inherited keeps the lock for an instant: that is no other daemon."""
    code = f"""
import os, sys, time
from pathlib import Path
from boundd.service.hold import hold
with hold(Path({str(tmp_path)!r})):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold(tmp_path):
            pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Is not made here: who has read the config makes it."""
    with pytest.raises(FileNotFoundError), hold(tmp_path / "none"):
        pass
    assert list(tmp_path.iterdir()) == []
