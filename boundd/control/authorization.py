"""What every request must pass before it is looked at: who asks, and how much at once.

Rules: who may not ask learns who asks, who may, and what to do, and nothing else. What a request's head holds is
bounded in number as well as in bytes, because each header and parameter costs more than its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from boundd.control.errors import ApiError, error_response
from boundd.control.peers import Access, AccessRules, Peer, user_name

HEADERS = 100
TARGET_LIMIT_BYTES = 48 * 1024
PARAMETERS = 512
FOLLOWERS = 64
"""Answers that go on, in all: event streams, followed logs and waits. Each is polled, and holds a connection."""
FOLLOWERS_A_USER = 48
READING = ("GET", "HEAD", "OPTIONS")
PEER = "peer"
"""The name in a request's state of the `Peer` that it came from."""


class Gate:
    """An ASGI app in front of the API."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the request through."""
        refusal = _excess(scope) if scope["type"] == "http" else None
        if refusal is None and scope["type"] == "http":
            refusal = await self._forbidden(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    async def _forbidden(self, scope: Scope) -> Response | None:
        peer: Peer | None = scope.get("state", {}).get(PEER)
        if peer is None:
            return None
        access = self._rules.access_of(peer)
        if access is Access.CHANGE or (access is Access.READ and scope["method"] in READING):
            return None
        # A user's name may come from a directory service that takes its time.
        message = await anyio.to_thread.run_sync(self._why, peer, access, scope["method"])
        return error_response(403, "forbidden", message)

    def _why(self, peer: Peer, access: Access, method: str) -> str:
        asks = f"{user_name(peer.uid)}, process {peer.pid}"
        may = self._rules.who_may_change()
        what = (
            f"may read here but not change anything ({method})" if access is Access.READ else "may not use this socket"
        )
        if self._rules.group:
            cure = f"be added to the group {self._rules.group} (usermod -aG) and log in anew"
        else:
            cure = "set [control] group in the config to a group that you are in, and restart boundd"
        return f"{asks}, {what}: {may} may. Ask as one of them, or {cure}"


def _excess(scope: Scope) -> Response | None:
    """Too much in a request's head."""
    if len(scope["headers"]) > HEADERS:
        return error_response(431, "too_large", f"the request has {len(scope['headers'])} headers, at most {HEADERS}")
    length = len(scope["raw_path"]) + len(scope["query_string"])
    if length > TARGET_LIMIT_BYTES:
        return error_response(414, "too_large", f"path and query have {length:,} bytes, at most {TARGET_LIMIT_BYTES:,}")
    if scope["query_string"].count(b"&") >= PARAMETERS:
        return error_response(414, "too_large", f"the query has over {PARAMETERS} parameters")
    return None


class Followers:
    """Counts the answers that go on."""

    def __init__(self) -> None:
        self._by_uid: Counter[int] = Counter()

    @contextmanager
    def one_more(self, request: Request) -> Iterator[None]:
        """Count one for the time of the block.

        Raises:
            ApiError: 429, there are too many.
        """
        peer: Peer | None = getattr(request.state, PEER, None)
        uid = -1 if peer is None else peer.uid
        if self._by_uid[uid] >= FOLLOWERS_A_USER or self._by_uid.total() >= FOLLOWERS:
            raise ApiError(
                429,
                "too_many",
                f"{self._by_uid.total()} answers that go on are open (events, followed logs, waits), "
                f"{self._by_uid[uid]} of them yours; at most {FOLLOWERS} in all, {FOLLOWERS_A_USER} a user: end some",
            )
        self._by_uid[uid] += 1
        try:
            yield
        finally:
            self._by_uid[uid] -= 1
            if not self._by_uid[uid]:
                del self._by_uid[uid]

    @property
    def total(self) -> int:
        """How many there are."""
        return self._by_uid.total()


class Following(StreamingResponse):
    """A streamed answer that counts as a follower until it has ended, whether its body was begun or not."""

    def __init__(self, followers: Followers, request: Request, content: AsyncIterator[bytes], **options: Any) -> None:
        super().__init__(content, **options)
        self._followers = followers
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer.

        Raises:
            ApiError: 429, there are too many.
        """
        with self._followers.one_more(self._request):
            await super().__call__(scope, receive, send)
