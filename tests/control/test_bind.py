"""The socket's file, and connections that can't be taken.

Seen to fail, each with what it is named after taken out of `boundd/control/server.py`: `fchmod` before the bind, the
comparison in `_remove`, `BlockingIOError` in `_clear` and its `settimeout`, `DESCRIPTORS_SHARE`, and in `_welcome` the
`except OSError`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
from pathlib import Path

import pytest
from control_server import connect, everything_of, running_server

from boundd.control import server
from boundd.control.peers import AccessRules, Peer, peer_of
from boundd.control.server import SocketError, bind


def test_it_is_never_wider_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between the bind and the chmod, whatever the umask."""
    seen = []

    def look(path: Path, _group_gid: int | None) -> None:
        if stat.S_ISSOCK(path.stat().st_mode):
            seen.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(server, "_give", look)
    before = os.umask(0)
    try:
        bind(tmp_path / "s", AccessRules.of()).close()
    finally:
        os.umask(before)
    assert [mode & 0o007 for mode in seen] == [0]


def test_another_s_socket_is_left_at_the_end(tmp_path: Path) -> None:
    """One that somebody has put in the place of ours since."""
    with running_server(tmp_path) as running, socket.socket(socket.AF_UNIX) as other:
        running.socket.unlink()
        other.bind(str(running.socket))
    assert running.socket.exists()


@pytest.mark.timeout(60)
def test_a_server_whose_queue_is_full_is_a_server(tmp_path: Path) -> None:
    """It is told from one that is gone, and not waited for."""
    with contextlib.ExitStack() as held:
        other = held.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(str(tmp_path / "s"))
        other.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = held.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(tmp_path / "s"))
        with pytest.raises(SocketError, match="another server answers there"):
            bind(tmp_path / "s", AccessRules.of())


def test_connections_leave_descriptors_for_the_rest() -> None:
    """At most half of those that the process may open; and never more than there may be anyway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for allowed, connections in ((200, 100), (1, 1), (min(hard, 4096), server.CONNECTIONS)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            assert server.connections_here() == connections
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_can_not_be_known_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel doesn't say who connected; the next one is served."""
    unknown = iter([True])

    def asked(connection: socket.socket) -> Peer:
        if next(unknown, False):
            raise OSError("the kernel does not say")
        return peer_of(connection)

    monkeypatch.setattr(server, "peer_of", asked)
    with running_server(tmp_path) as running:
        with connect(running) as plain:
            assert everything_of(plain) == b""
        assert running.client.get("/healthz")["ok"]
