"""One connection of the API: HTTP/1.1 by uvicorn and h11, with every wait for the client bounded.

Rules: whatever a client sends is answered with JSON or closed, and never waits for longer than the constants here say.
A connection in which it is the client's turn can be closed to make room for another
(`boundd.control.connection_limits`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import select
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from boundd.control.authorization import PEER
from boundd.control.connection_limits import Crowd
from boundd.control.peers import Peer

HEAD_TIMEOUT_S = 10.0
"""From a connection's beginning, or a further request's first byte, to the whole of the request's head."""
KEEP_ALIVE_S = 15.0
"""From an answer to the next request's first byte."""
STALL_S = 120.0
"""A client that takes nothing of an answer for so long is cut off."""
CROWDED_STALL_S = 5.0
"""The same while more than `UNREAD_LIMIT_BYTES` wait for clients."""
UNREAD_LIMIT_BYTES = 32 * 1024**2
STALL_CHECKS = 24
"""So often the longest wait for a reader is looked at while it lasts."""
GONE_POLL_S = 1.0
"""So often one that sends no more is looked at, whether it still reads."""
_HINTS = {431: (431, "too_large", "the request's head is too large")}

_log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """A connection, from who made it to its end."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], peer: Peer, crowd: Crowd
    ) -> None:
        super().__init__(config, server_state, {**app_state, PEER: peer})
        self.peer = peer
        self._crowd = crowd
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._half_closed: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._taken_at_s = 0.0
        self._awaits_first_byte = False

    # What the crowd asks

    @property
    def under_way(self) -> bool:
        """Whether a request is being served."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def unread_bytes(self) -> int:
        """What waits in our memory for the client to take it."""
        return self.transport.get_write_buffer_size()

    def waits_for_client(self, *, bodies: bool) -> bool:
        """Whether nothing happens here until the client sends; with `bodies`, the rest of a body counts too."""
        if self.under_way and not (bodies and self.cycle.more_body and not self.cycle.response_started):
            return False
        return self.transport.get_write_buffer_size() == 0 and self._silent()

    def evict(self) -> None:
        """Close it to make room."""
        if self.under_way:
            self._refuse(503, "too_many", "there are too many connections, and this one's request did not come")
        else:
            self.transport.close()

    def _silent(self) -> bool:
        """Whether nothing of the client's lies in the kernel, where we have only not got round to reading it."""
        with contextlib.suppress(OSError):
            descriptor = self.transport.get_extra_info("socket").fileno()
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return not any(event & select.POLLIN for _, event in poller.poll(0)) or self._gone(descriptor)
        return True

    @staticmethod
    def _gone(descriptor: int) -> bool:
        poller = select.poll()
        poller.register(descriptor, 0)
        return any(event & select.POLLHUP for _, event in poller.poll(0))

    # asyncio's protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        # Every byte that a client doesn't take pauses the answer and starts the clock.
        transport.set_write_buffer_limits(high=0)
        self._arm(HEAD_TIMEOUT_S)
        self._crowd.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._disarm()
        self._stop_watching()
        if self._half_closed is not None:
            self._half_closed.cancel()
        self._crowd.left(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._awaits_first_byte:
            self._awaits_first_byte = False
            self._arm(HEAD_TIMEOUT_S)
        super().data_received(data)
        if self.under_way:
            self._disarm()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. One that still reads gets the answer to a request that was whole."""
        if self.under_way and not self.cycle.more_body:
            self.cycle.keep_alive = False
            self._look_whether_gone()
            return True
        begun, _ = self.conn.trailing_data
        if self.under_way or begun:
            self._refuse(400, "bad_request", "the request ended before it was whole")
        return False

    def pause_writing(self) -> None:
        """The client doesn't take what it asked for as fast as it comes."""
        super().pause_writing()
        self._unread_bytes, self._taken_at_s = self.transport.get_write_buffer_size(), self.loop.time()
        self._watch()

    def resume_writing(self) -> None:
        """It has taken everything."""
        super().resume_writing()
        self._stop_watching()

    # uvicorn's protocol

    def on_response_complete(self) -> None:
        """An answer has been given: wait for the next request, or for the rest of this one's body."""
        body_is_whole = self.conn.their_state is not h11.SEND_BODY
        super().on_response_complete()
        # uvicorn has a clock of its own for idle connections, a faster one than ours.
        self._unset_keepalive_if_required()
        if self.transport.is_closing() or self.under_way:
            return
        self._awaits_first_byte = body_is_whole
        self._arm(KEEP_ALIVE_S)
        self._crowd.answered(self)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """What came is no HTTP. Called while h11's error is being handled, which knows more than the message."""
        error = sys.exception()
        hint = getattr(error, "error_status_hint", 400)
        status, kind, text = _HINTS.get(hint, (400, "bad_request", "the request is not HTTP/1.1 as boundd speaks it"))
        self._refuse(status, kind, f"{text}: {error}")

    # Waiting

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer with an error, where no answer has been begun, and close."""
        wants_body = True
        if self.under_way:
            wants_body = self.cycle.scope["method"] != "HEAD"
            # Who serves the request may be about to answer it: that would be a second answer, and h11 raises.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self._may_answer:
            # Its answer is on its way, or was given before the body came that is wrong: there is nothing left to say.
            self.transport.abort()
            return
        self.transport.write(_answer(self.conn, status, kind, message, wants_body=wants_body))
        self.transport.close()

    @property
    def _may_answer(self) -> bool:
        """Whether no answer has been begun to what the client has sent."""
        return self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def _arm(self, timeout_s: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(timeout_s, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self.transport.is_closing() or self.under_way:
            return
        begun, _ = self.conn.trailing_data
        if begun and self._may_answer:
            self._refuse(408, "timeout", f"the request's head did not come within {HEAD_TIMEOUT_S:g} s")
        else:
            self.transport.close()

    def _look_whether_gone(self) -> None:
        """Let go of a client that has sent its end and then closed: asyncio doesn't look at it any more by itself."""
        if self._gone(self.transport.get_extra_info("socket").fileno()):
            self.transport.abort()
        else:
            self._half_closed = self.loop.call_later(GONE_POLL_S, self._look_whether_gone)

    def _watch(self) -> None:
        self._stop_watching()
        self._stall = self.loop.call_later(min(CROWDED_STALL_S, STALL_S / STALL_CHECKS), self._look_at_reader)

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _look_at_reader(self) -> None:
        self._stall = None
        left = self.transport.get_write_buffer_size()
        if left < self._unread_bytes:
            self._taken_at_s = self.loop.time()
        self._unread_bytes = left
        crowded = self._crowd.unread_bytes() > UNREAD_LIMIT_BYTES
        if self.loop.time() - self._taken_at_s >= (CROWDED_STALL_S if crowded else STALL_S):
            _log.warning("%s took nothing of its answer, %s bytes of it are thrown away", self.peer, left)
            self.transport.abort()
        else:
            self._watch()


def _answer(connection: h11.Connection, status: int, kind: str, message: str, *, wants_body: bool) -> bytes:
    """An error as a whole answer, after which the connection is closed; to HEAD, without its body."""
    body = error_body(kind, message)
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    reason = HTTPStatus(status).phrase.encode()
    response = h11.Response(status_code=status, headers=headers, reason=reason)
    events = (response, h11.Data(data=body if wants_body else b""), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)


def error_body(kind: str, message: str) -> bytes:
    """An error of the API in ASCII JSON."""
    return json.dumps({"error": {"type": kind, "message": message}}).encode()


class TurnedAway(asyncio.Protocol):
    """A connection that there is no room for: told so at once, and closed soon."""

    LINGER_S = 1.0

    def __init__(self, status: int, kind: str, message: str) -> None:
        body = error_body(kind, message)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
        )
        self._content = head.encode() + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it; a client that is still sending must be able to read it, so what it sends is taken for a moment."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._content)
        with contextlib.suppress(OSError, NotImplementedError):
            transport.write_eof()
        asyncio.get_running_loop().call_later(self.LINGER_S, transport.abort)


def close_quietly(connection: socket.socket) -> None:
    """Close a connection that nothing more can be done about."""
    with contextlib.suppress(OSError):
        connection.close()
