"""Connections that there is no room for: told so where they can be, and soon gone.

Seen to fail: `TurnedAway.connection_made` that closes at once breaks the pipe of a client that is still sending, and
without its `write_eof` the client waits for an end that doesn't come; without its `abort` one that stays is never let
go; without the comparison with `TURNED_AWAY` all are told, and without forgetting those that went, nobody any more.
The limits themselves need several users: test_access.
Of who makes room, `Connection.waits_for_client` fails the test of the name without `_silent`, and that without `_gone`;
without the look at the write buffer; without `response_started`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_server import Running, connect, everything_of, held_up, hung_up, running_server, wait_for

from boundd.control import server
from boundd.control.connection import TurnedAway

LONG_S = 600.0
"""More than any test takes."""
TOLD = b"HTTP/1.1 503 Service Unavailable\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose connections all serve a request: four, of which one user has no more than two."""
    monkeypatch.setattr(server, "CONNECTIONS", 4)
    with running_server(tmp_path) as running, contextlib.ExitStack() as held:
        for _ in range(2):
            follower = held.enter_context(connect(running))
            follower.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert follower.recv(65536).startswith(b"HTTP/1.1 200")
        yield running


def test_who_is_still_sending_can_read_that_there_is_no_room(full: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of more than the kernel holds goes out whole, and the answer is there, to its end."""
    monkeypatch.setattr(TurnedAway, "LINGER_S", LONG_S)
    body = b"x" * 2_000_000
    with connect(full) as plain:
        plain.sendall(b"POST /v1/import HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        plain.sendall(body)
        head, _, said = everything_of(plain).partition(b"\r\n\r\n")
    assert head.startswith(TOLD)
    assert b"retry-after: 1" in head
    assert json.loads(said)["error"]["type"] == "too_many"


def test_who_is_turned_away_does_not_stay(full: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed a moment later, whether or not the client reads or goes."""
    monkeypatch.setattr(TurnedAway, "LINGER_S", 0.05)
    with connect(full) as plain:
        wait_for(lambda: hung_up(plain))
        assert everything_of(plain).startswith(TOLD)


def test_no_more_than_some_are_told(full: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further ones are closed unheard, so that they cost nothing; one that goes makes room for one to be told."""
    monkeypatch.setattr(TurnedAway, "LINGER_S", LONG_S)
    monkeypatch.setattr(server, "TURNED_AWAY", 2)
    with contextlib.ExitStack() as held:
        first, second, third = (held.enter_context(connect(full)) for _ in range(3))
        assert everything_of(third) == b""
        assert everything_of(first).startswith(TOLD)
        assert everything_of(second).startswith(TOLD)
        first.close()

        def is_told() -> bool:
            with connect(full) as plain:
                return everything_of(plain).startswith(TOLD)

        wait_for(is_told)


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server of which one user has one connection."""
    monkeypatch.setattr(server, "CONNECTIONS", 2)
    with running_server(tmp_path) as running:
        yield running


def test_who_has_sent_its_request_is_not_driven_out(single: Running) -> None:
    """Also where we have not got round to reading it: the next one comes at the same moment."""
    with contextlib.ExitStack() as held:
        with held_up(single):
            first, second = (held.enter_context(connect(single)) for _ in range(2))
            first.sendall(CLOSE)
            second.sendall(CLOSE)
        assert everything_of(first).startswith(b"HTTP/1.1 200")


def test_who_is_gone_makes_room(single: Running) -> None:
    """Whatever it has sent before: one that is there comes first."""
    with contextlib.ExitStack() as held:
        with held_up(single):
            first, second = (held.enter_context(connect(single)) for _ in range(2))
            first.sendall(GET[:-2])
            first.close()
            second.sendall(CLOSE)
        assert everything_of(second).startswith(b"HTTP/1.1 200")


def test_who_has_not_taken_its_answer_keeps_its_place(single: Running) -> None:
    """It would be out of the count with all that waits for it, and another could do the same in its place."""
    single.service.store_problem = "x" * 4 * 1024**2
    with connect(single) as first:
        first.sendall(GET)
        assert first.recv(1) == b"H"
        with connect(single) as second:
            assert b"too_many" in everything_of(second)
        assert not hung_up(first)


def test_an_answer_that_goes_on_is_not_cut_off_for_a_body_that_does_not_come(single: Running) -> None:
    """What makes room is a request that waits for its body, not one that is being answered without."""
    with connect(single) as first:
        first.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(single) as second:
            assert b"too_many" in everything_of(second)
        assert not hung_up(first)
