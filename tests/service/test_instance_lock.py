"""Who holds a state folder. The other holders are processes of their own: a process' own locks don't stop it.

Each of these was seen to fail without what it is about: one of the two `_take` of `hold`; its `suppress(OSError)`;
either `os.ftruncate` of `_leave_pid`; either half of the condition in `_take`'s last `except`; what `_opened` makes of
a full disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boundd.ports import AlreadyRunningError, StoreBusyError
from boundd.service.instance_lock import LOCK_NAME, hold

HOLDS = """
import sys
from pathlib import Path
from boundd.service.instance_lock import hold
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
    with pytest.raises(AlreadyRunningError) as caught, hold(folder):
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
from boundd.service.instance_lock import hold
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


def test_a_daemon_that_knows_only_the_file_keeps_others_out(tmp_path: Path) -> None:
    """As those of earlier releases did, which held no folder."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", f"{code}; input()", str(tmp_path / LOCK_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert f"(pid {process.pid})" in refused(tmp_path)
        process.communicate("\n")


def flock_that_fails(monkeypatch: pytest.MonkeyPatch, number: int, *, of_folders: bool) -> None:
    """As on a file system that can't lock folders, or nothing at all."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is of_folders:
            raise OSError(number, os.strerror(number))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_folders_can_not_be_locked_the_file_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems lock files alone; any other failure to lock is one."""
    with monkeypatch.context() as patch:
        flock_that_fails(patch, errno.EBADF, of_folders=True)
        with hold(tmp_path), pytest.raises(BlockingIOError), (tmp_path / LOCK_NAME).open() as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    for number, of_folders in ((errno.ENOLCK, False), (errno.EACCES, True)):
        with monkeypatch.context() as patch:
            flock_that_fails(patch, number, of_folders=of_folders)
            with pytest.raises(OSError, match=os.strerror(number)), hold(tmp_path):
                pass


def test_a_disk_that_takes_no_pid_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The locks count. No pid is named rather than the one before."""
    (tmp_path / LOCK_NAME).write_text("999999\n")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with hold(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == ""


def test_nothing_is_left_of_a_longer_pid(tmp_path: Path) -> None:
    """The file says one pid, whatever it said before."""
    (tmp_path / LOCK_NAME).write_text("123456789012345\n17\n")
    with hold(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_full_disk_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes is told from what doesn't: a daemon that starts on a full disk tries again."""
    real = os.open

    def full(path: Path, *rest: int) -> int:
        if str(path).endswith(LOCK_NAME):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(StoreBusyError, match=r"No space left on device\. See to the disk"), hold(tmp_path):
        pass
