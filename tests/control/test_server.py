"""The socket itself, bad clients, and bad bodies.

Bounds that were taken out, and the test of the name then failed: `Connection._arm` and `_watch` that start no timer,
`fail_after(None)` around a body, each of the two limits in `Followers.one_more`, `Crowd._make_room` that returns False,
`_without_descriptors` that keeps its spare one or never sets `_quiet_until_s`, `eof_received` that returns False,
`send_400_response` deleted, `_excess` left out of the gate, `_worth_telling` that tells of what was cancelled. The file
is tried further in test_bind, one connection in test_connection, those that there is no room for in test_crowd, several
users in test_access.
"""

from __future__ import annotations

import contextlib
import grp
import itertools
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from control_server import (
    CELLS,
    LABELS,
    Running,
    connect,
    curl,
    everything_of,
    hung_up,
    live_attempt,
    running_server,
    wait_for,
)

from boundd.client import Client, NoDaemonError, RefusedError
from boundd.control import authorization as gate
from boundd.control import connection, server
from boundd.control import request_parsing as bodies
from boundd.control.peers import AccessRules
from boundd.control.server import SocketError, bind


def test_the_socket_is_for_its_owner_and_group(running: Running) -> None:
    """0660 in a folder made 0750, whatever the umask."""
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(running.socket.parent.stat().st_mode) == 0o750


def test_it_is_removed_at_the_end_and_signals_are_left_alone(tmp_path: Path) -> None:
    """Nothing is left behind."""
    with running_server(tmp_path) as running:
        assert running.client.get("/healthz")["ok"]
    assert not running.socket.exists()
    with pytest.raises(NoDaemonError, match=r"boundd\.sock: No such file"):
        running.client.get("/healthz")


@pytest.mark.parametrize("how", ["by itself", "when asked"])
def test_a_socket_that_was_swept_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """By itself, or at once where a SIGHUP has it looked after; a file that somebody put there is left alone.

    Seen to fail: without `bound_anew` nothing answers there any more.
    """
    monkeypatch.setattr("boundd.control.server.LOOK_S", 0.1 if how == "by itself" else 600)

    def looked_after(done: Callable[[], bool]) -> bool:
        if how == "when asked":
            running.look()
        return done()

    with running_server(tmp_path) as running:
        follower = connect(running)
        for sweep in (Path.unlink, lambda path: shutil.rmtree(path.parent)):
            sweep(running.socket)
            wait_for(lambda: looked_after(running.socket.exists))
            assert running.client.get("/healthz")["ok"]
            assert stat.S_IMODE(running.socket.stat().st_mode) == 0o660
        follower.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert follower.recv(100).startswith(b"HTTP/1.1 200"), "who was connected stays so"
        follower.close()
        running.socket.unlink()
        running.socket.write_text("somebody's")
        wait_for(lambda: looked_after(lambda: "can't be made anew" in caplog.text))
    assert running.socket.read_text() == "somebody's"
    assert "was removed by somebody, and has been made anew" in caplog.text


def test_a_follower_does_not_hold_up_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An endless answer is cut off, and that is no error."""
    with running_server(tmp_path) as running:
        stream = running.client.stream("/v1/events")
        next(stream)
        began = time.monotonic()
    assert time.monotonic() - began < server.GRACE_S + 3
    assert list(stream) == []
    assert not caplog.records


def test_a_live_server_is_not_replaced_and_a_dead_one_is(running: Running, tmp_path: Path) -> None:
    """Refused where another answers; a stale socket is removed; a file is left alone."""
    with pytest.raises(SocketError, match="another server answers"):
        bind(running.socket, AccessRules.of())
    assert running.client.get("/healthz")["ok"]
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    bind(stale, AccessRules.of()).close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(SocketError, match="no socket"):
        bind(file, AccessRules.of())
    assert file.read_text() == "precious"


def test_paths_and_groups_that_can_not_be(tmp_path: Path) -> None:
    """Too long, no such group; a group that there is, is set."""
    with pytest.raises(SocketError, match="107"):
        bind(tmp_path / ("x" * 200), AccessRules.of())
    with pytest.raises(SocketError, match="no group 'nobody-has-this'"):
        AccessRules.of("nobody-has-this")
    group = grp.getgrgid(os.getgid())
    bind(tmp_path / "b.sock", AccessRules.of(group.gr_name)).close()
    assert (tmp_path / "b.sock").stat().st_gid == group.gr_gid


BODIES = {
    "not JSON": b"{",
    "deep": b"[" * 60_000,
    "deep object": b'{"a":' * 9000,
    "huge integer": b'{"batch_size": ' + b"9" * 5000 + b"}",
    "2**64": b'{"batch_size": 18446744073709551616}',
    "NaN": b'{"batch_size": NaN}',
    "infinity": b'{"batch_size": 1e999}',
    "surrogate": b'{"query": ["\\ud800"]}',
    "not UTF-8": b'{"query": ["\xff"]}',
    "unknown key": b'{"qeury": []}',
    "unknown selector": b'{"selector": "everything"}',
    "a list": b"[]",
    "a number": b"1",
    "NUL": b"\0",
    "twice": b'{"dry_run": true, "dry_run": false}',
    "wrong type": b'{"dry_run": 1}',
    "many terms": json.dumps({"query": ["x"] * 1000}).encode(),
    "empty term": b'{"query": [""]}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_a_400(running: Running, tmp_path: Path, name: str) -> None:
    """With a JSON error, and without anything happening."""
    (tmp_path / "body").write_bytes(BODIES[name])
    url = "http://localhost/v1/retry"
    answer = curl(running, "--data-binary", f"@{tmp_path / 'body'}", "-w", "\n%{http_code}", url)
    body, code = answer.stdout.rsplit("\n", 1)
    assert code == "400", body
    assert set(json.loads(body)["error"]) >= {"type", "message"}
    assert running.service.submitted == []


def test_bodies_are_capped(running: Running, tmp_path: Path) -> None:
    """64 KiB, and 8 MiB for an import, declared or chunked."""
    (tmp_path / "body").write_bytes(b'{"query": ["' + b"x" * 70_000 + b'"]}')
    data = ("--data-binary", f"@{tmp_path / 'body'}", "-o", os.devnull, "-w", "%{http_code}")
    assert curl(running, *data, "http://localhost/v1/retry").stdout == "413"
    assert curl(running, *data, "-H", "Transfer-Encoding: chunked", "http://localhost/v1/retry").stdout == "413"
    assert running.client.post("/v1/import", {"text": "x" * 1_000_000})["affected"] == LABELS[:1]
    (tmp_path / "body").write_bytes(b'{"text": "' + b"x" * 9 * 1024**2 + b'"}')
    assert curl(running, *data, "http://localhost/v1/import").stdout == "413"


def test_bad_clients_hold_up_nobody(running: Running) -> None:
    """Half a request, half-closed, no HTTP at all, and readers that don't read."""
    bad = [connect(running) for _ in range(60)]
    try:
        for number, plain in enumerate(bad):
            kind = number % 4
            plain.sendall(
                [
                    b"GET /v1/status HT",
                    b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
                    b"\x16\x03\x01\x02\x00 no HTTP\r\n\r\n",
                    b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
                ][kind]
            )
            if number % 8 == 1:
                plain.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        assert running.client.get("/v1/status")["cells"]["total"] == 6
        assert running.client.post("/v1/pause")["changed"]
        assert time.monotonic() - began < 2
    finally:
        for plain in bad:
            plain.close()


def test_silent_connections_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends nothing, half a head, or half of a second request's head, is closed in time."""
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.5)
    with running_server(tmp_path) as running:
        silent, half, second, idle = (connect(running) for _ in range(4))
        half.sendall(b"GET /healthz HT")
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for answered in (second, idle):
            got = b""
            while not got.endswith(b"}"):
                got += answered.recv(65536)
        second.sendall(b"GET /healthz HT")
        assert silent.recv(1) == b""
        assert idle.recv(1) == b""
        for late in (half, second):
            assert everything_of(late).startswith(b"HTTP/1.1 408")


def test_a_head_that_drips_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then doesn't start the clock anew."""
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 1.0)
    with running_server(tmp_path) as running:
        dripping = connect(running)
        began = time.monotonic()
        for byte in itertools.chain(b"GET /", itertools.repeat(ord("x"))):
            try:
                dripping.sendall(bytes([byte]))
            except BrokenPipeError:
                break
            time.sleep(0.02)
            assert time.monotonic() - began < 60


def test_a_body_that_does_not_come_is_a_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is read or its path is unknown."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.5)
    with running_server(tmp_path) as running:
        for path, answer in ((b"/v1/retry", b"HTTP/1.1 408"), (b"/nothing", b"HTTP/1.1 404")):
            slow = connect(running)
            slow.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            assert everything_of(slow).startswith(answer)


def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its answer in memory for ever, also where no more than a little of that is left."""
    monkeypatch.setattr(connection, "STALL_S", 0.6)
    with running_server(tmp_path) as running:
        log = running.service.launcher.log_path(live_attempt().id)
        log.write_bytes(b"x" * 5_000_000)
        path = f"/v1/cells/{CELLS[1].digest}/logs".encode()
        stuck = connect(running)
        stuck.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        fast = connect(running)
        fast.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert everything_of(fast).count(b"x") >= 5_000_000
        wait_for(lambda: hung_up(stuck))


def test_the_little_that_a_reader_leaves_is_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that nearly fit into what the kernel holds for a client, of sizes around that."""
    monkeypatch.setattr(connection, "STALL_S", 0.6)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.6)
    with running_server(tmp_path) as running:
        running.service.launcher.log_path(live_attempt().id).write_bytes(b"x" * 5_000_000)
        stuck = []
        for size in range(60_000, 400_000, 20_000):
            path = f"/v1/cells/{CELLS[1].digest}/logs?limit={size}".encode()
            stuck.append(connect(running))
            stuck[-1].sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: all(hung_up(plain) for plain in stuck))


def test_idle_connections_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more than there may be hold nobody up: the oldest that are idle are closed."""
    monkeypatch.setattr(server, "CONNECTIONS", 20)
    with running_server(tmp_path) as running:
        kept = Client(running.socket)
        silent = []
        for number in range(60):
            plain = connect(running)
            if number % 3 == 1:
                plain.sendall(b"GET /v1/sta")
            if number % 3 == 2:
                plain.sendall(b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            silent.append(plain)
            assert kept.get("/healthz")["ok"]
        wait_for(lambda: sum(hung_up(plain) for plain in silent) >= 60 - 20)
        for plain in silent:
            plain.close()


def test_requests_under_way_are_not_driven_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all connections serve a request there is a 503 in JSON, and they go on."""
    monkeypatch.setattr(server, "CONNECTIONS", 8)
    with running_server(tmp_path) as running:
        followers = [connect(running) for _ in range(4)]
        for follower in followers:
            follower.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert follower.recv(65536).startswith(b"HTTP/1.1 200")
        answer = curl(running, "-w", "\n%{http_code}", "http://localhost/healthz").stdout
        body, code = answer.rsplit("\n", 1)
        assert (code, json.loads(body)["error"]["type"]) == ("503", "too_many")
        assert not any(hung_up(follower) for follower in followers)
        followers[0].close()
        wait_for(lambda: curl(running, "http://localhost/healthz").stdout.startswith('{"ok":true'))
        for follower in followers:
            follower.close()


@pytest.mark.parametrize("limit", ["FOLLOWERS", "FOLLOWERS_A_USER"])
def test_answers_that_go_on_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Past their number there is a 429, in all and of a user; one that ended makes room."""
    monkeypatch.setattr(gate, limit, 2)
    with running_server(tmp_path) as running:
        followers = [connect(running) for _ in range(2)]
        for follower in followers:
            follower.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert follower.recv(65536).startswith(b"HTTP/1.1 200")
        for path in ("/v1/events", "/v1/wait"):
            with pytest.raises(RefusedError, match="at most") as caught:
                next(running.client.stream(path))
            assert caught.value.status == 429
        followers[0].close()
        wait_for(lambda: may_wait(running))
        followers[1].close()


def may_wait(running: Running) -> bool:
    """Whether there is room for one more that waits."""
    try:
        return running.client.get("/v1/wait", {"timeout": 0}) is not None
    except RefusedError:
        return False


def test_without_descriptors_nobody_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon that can open no more files closes who comes at once, says so once, and serves again when it can."""
    with running_server(tmp_path) as running:
        assert running.client.get("/healthz")["ok"]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        closed, filling = 0, []
        try:
            with contextlib.suppress(OSError):
                while True:
                    filling.append(os.open(os.devnull, os.O_RDONLY))
            for client in clients:
                client.settimeout(30)
                client.connect(str(running.socket))
                try:
                    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    closed += client.recv(1) == b""
                except (ConnectionResetError, BrokenPipeError):
                    closed += 1
            assert closed
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in filling:
                os.close(descriptor)
        assert running.client.get("/healthz")["ok"]
    said = [record.getMessage() for record in caplog.records]
    assert [each.partition(":")[0] for each in said] == ["no connection can be taken"], said


def test_a_half_closed_client_gets_its_answer(running: Running) -> None:
    """One that says it will send no more still reads; one whose request isn't whole is told."""
    for sent, answer in (
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
        (b"GET /v1/wait?timeout=0.5 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
        (b"GET /healthz HTTP/1.1\r\n", b"HTTP/1.1 400"),
        (b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{", b"HTTP/1.1 400"),
        (b"", b""),
    ):
        plain = connect(running)
        plain.sendall(sent)
        plain.shutdown(socket.SHUT_WR)
        got = everything_of(plain)
        assert got.startswith(answer), sent
        assert got or not answer


RAW = {
    "no HTTP": (b"\x16\x03\x01\x02\x00 no HTTP\r\n\r\n", 400),
    "huge head": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000, 431),
    "many headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
    "long path": (b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "many parameters": (b"GET /v1/cells?" + b"q=x&" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "many terms": (b"GET /v1/cells?" + b"q=*&" * 300 + b"q=* HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "long term": (b"GET /v1/cells?q=" + b"*" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "unknown coding": (b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    "two lengths": (b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{", 400),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "bad chunk": (b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "NUL": (b"GET /v1/cells/%00 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "bad key": (b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\nContent-Length: 0\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_wrong_with_a_request_is_said_in_json(running: Running, name: str) -> None:
    """Never text, never a 5xx, never silence, and nothing happens."""
    content, status = RAW[name]
    plain = connect(running)
    plain.sendall(content)
    plain.shutdown(socket.SHUT_WR)
    head, _, body = everything_of(plain).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert set(json.loads(body)["error"]) >= {"type", "message"}
    assert running.service.submitted == []


def test_the_client_names_what_answers_otherwise(tmp_path: Path) -> None:
    """A socket nobody listens on, and no socket."""
    with pytest.raises(NoDaemonError, match="no daemon answers"):
        Client(tmp_path / "nothing").get("/v1/status")


def test_the_client_imports_nothing_slow() -> None:
    """No pydantic, no starlette, no anyio, no rich: `boundctl` has 150 ms."""
    code = "import sys, boundd.cli.boundctl; print(sorted({m.split('.')[0] for m in sys.modules}))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"pydantic", "starlette", "anyio", "rich", "uvicorn", "asyncio", "structlog"} & set(eval(names))
