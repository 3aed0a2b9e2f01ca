"""One connection: answers that nobody takes, bodies that are too large, and what goes wrong beside an answer.

Seen to fail with a protection of `boundd/control` taken out:
- a slow reader: `_look_at_reader` that never sets `_taken_at_s` anew;
- a reader for whom others wait: `_look_at_reader` with `crowded = False`, so that it has `STALL_S`; with
  `Crowd.unread_bytes` of one connection in place of all; with `crowded = True`, which cuts off the other one too;
- a body that says it is too large: without the look at Content-Length in `bodies._read`, which is then asked for
  (100), and with `>=` in place of `>` there;
- an answer that comes too late: `_refuse` without `cycle.disconnected = True`; the same with
  `cycle.message_event.set()` taken out keeps the request for as long as its body may take;
- rubbish after an answer: `_refuse` without the question whether it may answer; an answer to HEAD with a body;
- what is idle: `on_response_complete` without `_unset_keepalive_if_required`;
- a reader that has caught up: `resume_writing` without `_stop_watching`; one that went away: `connection_lost` without;
- who goes away: `eof_received` without `_look_whether_gone`, `connection_lost` without the end of that;
- the rest of a body: `on_response_complete` with `body_is_whole` true; what has ended: `connection_lost` without
  `_disarm`;
- what a client does wrong: `bodies._read` without `except ClientDisconnect`, `server._worth_telling` that tells all.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from control_server import (
    CELLS,
    Running,
    connect,
    errors,
    everything_of,
    held_up,
    hung_up,
    live_attempt,
    requests_under_way,
    running_server,
    wait_for,
)
from uvicorn.protocols.http.h11_impl import H11Protocol

from boundd.api.constants import BODY_LIMIT_BYTES, IMPORT_LIMIT_BYTES
from boundd.control import api, connection, streams
from boundd.control import request_parsing as bodies

MIB = 1024**2
LONG_S = 600.0
"""More than any test takes."""


def before_each_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something in the server's loop whenever it is about to look whether a client takes its answer."""
    look = connection.Connection._look_at_reader

    def after_acting(self: connection.Connection) -> None:
        act()
        look(self)

    monkeypatch.setattr(connection.Connection, "_look_at_reader", after_acting)


def reader_of_a_log(running: Running, length_bytes: int) -> socket.socket:
    """A client that has asked for a log of that length, and takes nothing of it yet."""
    with running.service.launcher.log_path(live_attempt().id).open("wb") as log:
        log.truncate(length_bytes)
    plain = connect(running)
    path = f"/v1/cells/{CELLS[1].digest}/logs".encode()
    plain.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return plain


def test_a_reader_that_is_slow_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes something now and then has all the time it wants for the whole."""
    got: list[bytes] = []
    slow: list[socket.socket] = []
    looks: list[None] = []

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(slow[0].fileno(), MIB):  # a recv would wait
                got.append(data)
        looks.append(None)

    before_each_look(monkeypatch, take)
    monkeypatch.setattr(connection, "STALL_S", 0.24)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 16 * MIB)
    with running_server(tmp_path) as running:
        with held_up(running):
            slow.append(reader_of_a_log(running, 16 * MIB))
        # What it takes at each look is what fits into the kernel: the whole takes several times as many.
        wait_for(lambda: len(looks) >= 2 * connection.STALL_CHECKS or hung_up(slow[0]))
        rest = everything_of(slow[0])
        slow[0].close()
    assert sum(data.count(b"\0") for data in [*got, rest]) == 16 * MIB


def test_a_reader_is_cut_off_sooner_where_much_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that take nothing, where one's is not too much: the other goes on to its end, however often looked at."""
    looks: list[None] = []
    before_each_look(monkeypatch, lambda: looks.append(None))
    monkeypatch.setattr(connection, "CROWDED_STALL_S", 0.05)
    monkeypatch.setattr(connection, "STALL_S", LONG_S)
    # A reader has at most a chunk waiting for it, and nearly a whole one where it takes nothing.
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4 * MIB)
    monkeypatch.setattr(connection, "UNREAD_LIMIT_BYTES", 4 * MIB)
    with running_server(tmp_path) as running:
        readers = [reader_of_a_log(running, 8 * MIB) for _ in range(2)]
        wait_for(lambda: any(hung_up(reader) for reader in readers))
        seen = len(looks)
        wait_for(lambda: len(looks) >= seen + 5 or all(hung_up(reader) for reader in readers))
        (left,) = (reader for reader in readers if not hung_up(reader))
        assert everything_of(left).count(b"\0") == 8 * MIB
        for reader in readers:
            reader.close()


def test_a_reader_that_has_caught_up_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock stops: nobody takes anything of an answer in which nothing comes."""
    monkeypatch.setattr(connection, "STALL_S", 0.24)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4 * MIB)
    with running_server(tmp_path) as running:
        with running.service.launcher.log_path(live_attempt().id).open("wb") as log:
            log.truncate(4 * MIB)
        with connect(running) as plain:
            path = f"/v1/cells/{CELLS[1].digest}/logs?follow=1".encode()
            plain.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            taken = 0
            while taken < 4 * MIB:
                taken += plain.recv(65536).count(b"\0")
            # In the server's own loop: what was to happen within the quarter of a second has happened then.
            running.call(anyio.sleep, 0.5)
            assert not hung_up(plain)


def test_a_reader_that_went_away_is_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has readers that took nothing, not those that are gone."""
    looks: list[None] = []
    before_each_look(monkeypatch, lambda: looks.append(None))
    monkeypatch.setattr(connection, "STALL_S", 0.24)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4 * MIB)
    with running_server(tmp_path) as running:
        with reader_of_a_log(running, 4 * MIB):
            wait_for(lambda: bool(looks))
        wait_for(lambda: not requests_under_way(running))
        running.call(anyio.sleep, 0.5)
    assert not caplog.records


@pytest.mark.parametrize("path", ["/v1/events", "/v1/wait?timeout=300"])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half closed before"])
def test_who_goes_away_is_not_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch, path: str, half: bool
) -> None:
    """A client that has closed is gone, not half closed and still reading; nor for ever where it was that before."""
    monkeypatch.setattr(streams, "HEARTBEAT_S", LONG_S)
    monkeypatch.setattr(connection, "GONE_POLL_S", 0.05)
    with connect(running) as plain:
        plain.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_for(lambda: len(requests_under_way(running)) == 1)
        if half:
            plain.shutdown(socket.SHUT_WR)
            running.call(anyio.sleep, 0.2)
            assert len(requests_under_way(running)) == 1
    wait_for(lambda: not requests_under_way(running))


def test_who_has_sent_its_end_and_got_its_answer_is_forgotten(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody looks whether it still reads, at a socket that there is no more."""
    monkeypatch.setattr(connection, "GONE_POLL_S", 0.05)
    with connect(running) as plain:
        plain.sendall(b"GET /v1/wait?timeout=0.2 HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.shutdown(socket.SHUT_WR)
        assert everything_of(plain).startswith(b"HTTP/1.1 200")
    running.call(anyio.sleep, 0.2)
    assert not caplog.records


def test_the_rest_of_a_body_starts_no_clock(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte more of it, after the answer, is not the first of a further request."""
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.3)
    with connect(running) as plain:
        plain.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert plain.recv(65536).startswith(b"HTTP/1.1 404")
        monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", LONG_S)
        with contextlib.suppress(BrokenPipeError):
            plain.sendall(b"x")
        wait_for(lambda: hung_up(plain))


def test_a_connection_that_has_ended_is_forgotten(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clocks don't keep it: many short ones would be many that are kept."""
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", LONG_S)
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", LONG_S)

    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, connection.Connection) for each in gc.get_objects())

    before = kept()
    for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /heal"):
        for _ in range(5):
            with connect(running) as plain:
                plain.sendall(sent)
                assert not sent.endswith(b"\r\n") or plain.recv(65536)
    # The last one may still be named by something that is at work.
    wait_for(lambda: kept() <= before + 1)


@pytest.mark.parametrize(
    "sent",
    [
        b"no HTTP\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
        b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_what_a_client_does_wrong_is_not_in_the_log(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sent: bytes, reads: bool
) -> None:
    """Bad requests and bodies that end in the middle: whoever may connect could fill the log, or have it cry wolf."""
    monkeypatch.setattr(connection, "GONE_POLL_S", 0.05)
    with connect(running) as plain:
        plain.sendall(sent)
        if reads:
            plain.shutdown(socket.SHUT_WR)
            assert plain.recv(65536)
    wait_for(lambda: not requests_under_way(running))
    assert not caplog.records


@pytest.mark.parametrize(
    ("path", "limit_bytes"), [(b"/v1/retry", BODY_LIMIT_BYTES), (b"/v1/import", IMPORT_LIMIT_BYTES)]
)
def test_a_body_that_says_it_is_too_large_is_not_asked_for(running: Running, path: bytes, limit_bytes: int) -> None:
    """413 in place of 100: a client that asks first sends none of it. A body of just the limit is asked for."""
    for length, answer in (
        (limit_bytes + 1, b"HTTP/1.1 413"),
        (10**19, b"HTTP/1.1 413"),
        (limit_bytes, b"HTTP/1.1 100"),
    ):
        with connect(running) as plain:
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            plain.sendall(head % (path, length))
            assert plain.recv(65536).startswith(answer)


def test_an_answer_that_comes_too_late_is_no_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that is refused at the very moment its answer is ready: one answer, and no traceback in the log."""
    # Of six cells the first four: between them and the rest, what the client does is looked at.
    monkeypatch.setattr(api, "ROWS_AT_A_TIME", 4)
    with running_server(tmp_path) as running:
        for _ in range(3):
            with connect(running) as plain:
                with held_up(running):
                    plain.sendall(b"GET /v1/cells HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
                    plain.shutdown(socket.SHUT_WR)
                answer = everything_of(plain)
                assert answer.startswith(b"HTTP/1.1 400")
                assert answer.count(b"HTTP/1.1") == 1
    assert not errors(caplog)


def test_a_refusal_that_nobody_takes_keeps_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is refused while the answer before it is still in the client's way is over at once."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", LONG_S)
    monkeypatch.setattr(connection, "STALL_S", LONG_S)
    with running_server(tmp_path) as running:
        running.service.store_problem = "x" * 4 * MIB
        with connect(running) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            plain.sendall(b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            wait_for(lambda: requests_under_way(running) == ["/v1/retry"])
            plain.shutdown(socket.SHUT_WR)
            wait_for(lambda: not requests_under_way(running))
            assert not hung_up(plain)
            assert b"HTTP/1.1 400" in everything_of(plain)[4 * MIB :]


@pytest.mark.parametrize(
    ("rubbish", "ends"),
    [(b"zz\r\n", False), (b"5", True), (b"1\r\n{\r\n", True)],
    ids=["no chunk", "half a chunk's head", "no last chunk"],
)
def test_rubbish_after_an_answer_is_no_error_of_ours(
    running: Running, caplog: pytest.LogCaptureFixture, rubbish: bytes, ends: bool
) -> None:
    """Of a body that came to be wrong after its request was answered there is nothing to say: closed, no traceback."""
    with connect(running) as plain:
        plain.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        got = b""
        while not got.endswith(b"}}"):
            got += plain.recv(65536)
        assert got.startswith(b"HTTP/1.1 404")
        plain.sendall(rubbish)
        if ends:
            plain.shutdown(socket.SHUT_WR)
        assert everything_of(plain) == b""
    assert not errors(caplog)


def test_rubbish_beside_an_answer_ends_it(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """The same while a streamed answer is on its way: cut off, without a second answer within it."""
    with connect(running) as plain:
        plain.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        got = b""
        while not got.endswith(b": boundd events\n\n\r\n"):
            got += plain.recv(65536)
        plain.sendall(b"zz\r\n")
        assert everything_of(plain) == b""
    wait_for(lambda: not requests_under_way(running))
    assert not errors(caplog)


@pytest.mark.parametrize(
    ("framing", "body"),
    [(b"Content-Length: 5", b"{"), (b"Transfer-Encoding: chunked", b"zz\r\n")],
    ids=["short", "bad"],
)
def test_a_refused_head_request_is_answered_without_a_body(
    running: Running, caplog: pytest.LogCaptureFixture, framing: bytes, body: bytes
) -> None:
    """As HTTP has it; h11 raises where there is one, and the client got nothing."""
    with connect(running) as plain:
        plain.sendall(b"HEAD /v1/wait?timeout=60 HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + body)
        plain.shutdown(socket.SHUT_WR)
        answer = everything_of(plain)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1
    assert not errors(caplog)


def test_an_idle_connection_has_one_clock(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, `KEEP_ALIVE_S`: uvicorn's own, of five seconds, is set by each answer too."""
    fast = property(lambda _self: 0.01, lambda _self, _value: None)
    monkeypatch.setattr(H11Protocol, "timeout_keep_alive", fast, raising=False)
    with connect(running) as plain:
        for _ in range(2):
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while not got.endswith(b"}"):
                got += plain.recv(65536)
            # In the server's own loop: what was to happen within the hundredth has happened then.
            running.call(anyio.sleep, 0.05)
            assert not hung_up(plain)
