"""A log that isn't one any more: a worker, or what it left behind, can put anything in its place.

Nothing of that is read, nobody waits for it, and the thread that looked is free again. Seen to fail:

- `open_regular` of boundd/protocol/regular_file.py without O_NONBLOCK: a pipe holds the request for ever; without
  O_NOFOLLOW: a link shows what it leads to; without S_ISREG: a pipe is an empty log.
- `read_log` of boundd/control/streams.py without its `except NotAFileError`: a followed answer breaks off.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from control_server import LABELS, Running, live_attempt

from boundd.client import RefusedError
from boundd.client.client import cell_path

PATIENCE_S = 120.0
SECRET = "what nobody is to see"
LOGS = cell_path(LABELS[1], "/logs")


def pipe(path: Path) -> None:
    """A pipe that nobody writes into."""
    os.mkfifo(path)


def link(path: Path) -> None:
    """A link to a file that is none of a client's business."""
    secret = path.with_name("secret")
    secret.write_text(SECRET)
    path.symlink_to(secret)


def folder(path: Path) -> None:
    """A folder."""
    path.mkdir()


INSTEAD = pytest.mark.parametrize("instead", [pipe, link, folder])


def in_time(work: Callable[[], None]) -> None:
    """Do it in a thread, so that a request that never ends fails the test and doesn't hold it up."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the request has no end"
    if failures:
        raise failures[0]


@INSTEAD
@pytest.mark.parametrize("parameters", [{}, {"offset": -5}, {"follow": 1}])
def test_what_is_no_file_is_not_read(
    running: Running, instead: Callable[[Path], None], parameters: dict[str, int]
) -> None:
    """A 404 that says what is there, whatever part of the log is asked for, and nothing of what a link leads to."""
    path = running.service.launcher.log_path(live_attempt().id)
    path.unlink()
    instead(path)

    def ask() -> None:
        with pytest.raises(RefusedError) as caught:
            list(running.client.stream(LOGS, parameters))
        assert caught.value.status == 404
        assert str(caught.value).startswith("there is no log to be read: ")
        assert SECRET not in str(caught.value)

    in_time(ask)


@INSTEAD
def test_a_followed_log_that_is_replaced_is_at_its_end(running: Running, instead: Callable[[Path], None]) -> None:
    """What was there has come, and the answer ends as one does: curl minds one that breaks off. The attempt goes on."""
    path = running.service.launcher.log_path(live_attempt().id)
    said = path.read_bytes()
    command = ["curl", "-sSN", "--max-time", str(PATIENCE_S), "--unix-socket", running.socket]
    with subprocess.Popen(
        [*command, f"http://localhost{LOGS}?follow=1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as following:
        assert following.stdout is not None
        got = following.stdout.read(len(said))
        path.unlink()
        instead(path)
        rest, errors = following.communicate()
    assert (got + rest, errors, following.returncode) == (said, b"", 0)
    assert live_attempt().id in running.service.state.attempts
