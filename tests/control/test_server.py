"""The socket itself, bad clients, and bad bodies."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from control_server import LABELS, Running, curl, running_server

from boundd.control import server
from boundd.control.client import Client, NoDaemonError
from boundd.control.server import SocketError, bind


def connect(running: Running) -> socket.socket:
    """A plain connection."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plain.settimeout(10)
    plain.connect(str(running.socket))
    return plain


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


def test_a_follower_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """An endless answer is cut off."""
    with running_server(tmp_path) as running:
        stream = running.client.stream("/v1/events")
        next(stream)
        began = time.monotonic()
    assert time.monotonic() - began < server.GRACE_S + 3
    assert list(stream) == []


def test_a_live_server_is_not_replaced_and_a_dead_one_is(running: Running, tmp_path: Path) -> None:
    """Refused where another answers; a stale socket is removed; a file is left alone."""
    with pytest.raises(SocketError, match="another server answers"):
        bind(running.socket, None)
    assert running.client.get("/healthz")["ok"]
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    bind(stale, None).close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(SocketError, match="no socket"):
        bind(file, None)
    assert file.read_text() == "precious"


def test_paths_and_groups_that_can_not_be(tmp_path: Path) -> None:
    """Too long, no such group; a group that there is, is set."""
    with pytest.raises(SocketError, match="107"):
        bind(tmp_path / ("x" * 200), None)
    with pytest.raises(SocketError, match="no group 'nobody-has-this'"):
        bind(tmp_path / "a.sock", "nobody-has-this")
    assert not (tmp_path / "a.sock").exists()
    group = grp.getgrgid(os.getgid())
    bind(tmp_path / "b.sock", group.gr_name).close()
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
    """They would use up the limit, and nobody else could ask; past the limit there is a 503."""
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(server, "CONNECTIONS", 20)
    with running_server(tmp_path) as running:
        silent = [connect(running) for _ in range(20)]
        time.sleep(0.1)
        assert curl(running, "-o", os.devnull, "-w", "%{http_code}", "http://localhost/healthz").stdout == "503"
        time.sleep(0.7)
        assert running.client.get("/healthz")["ok"]
        assert all(plain.recv(1) == b"" for plain in silent)


def test_the_client_names_what_answers_otherwise(tmp_path: Path) -> None:
    """A socket nobody listens on, and no socket."""
    with pytest.raises(NoDaemonError, match="no daemon answers"):
        Client(tmp_path / "nothing").get("/v1/status")


def test_the_client_imports_nothing_slow() -> None:
    """No pydantic, no starlette, no anyio, no rich: `boundctl` has 150 ms."""
    code = "import sys, boundd.cli.boundctl; print(sorted({m.split('.')[0] for m in sys.modules}))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"pydantic", "starlette", "anyio", "rich", "uvicorn", "asyncio", "structlog"} & set(eval(names))
