"""Idempotency keys: a request that comes again with its key gets its first answer again, and is not done twice.

Rules: an answer is kept in the transaction of the change that it tells of, so that a client which lost it to a crash of
the daemon can ask the next one. Keys are a user's own. Refusals are not kept: nothing was changed, and asking again is
safe. A request that is being done is waited for, not done beside itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import anyio
from starlette.requests import Request

from boundd.api.constants import KEY_CHARACTERS, KEY_HEADER
from boundd.api.requests import Request as Body
from boundd.control.authorization import PEER
from boundd.control.errors import ApiError, bad_request
from boundd.control.json_text import json_text
from boundd.core.model.records import Record, SaveAnswer
from boundd.ports import KeptAnswer, Service, StoreBusyError

KEPT_S = 24 * 3600.0
KEPT_ANSWERS = 1000
ANSWER_LIMIT_BYTES = 64 * 1024
"""Compressed; a longer answer is not kept, only that it was given."""
NOBODY = -1


def key_of(request: Request) -> str | None:
    """The request's key; None where it has none.

    Raises:
        ApiError: 400, it can't be a key.
    """
    given = request.headers.getlist(KEY_HEADER)
    if not given:
        return None
    key = given[0]
    if len(given) > 1 or not 1 <= len(key) <= KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise bad_request(f"{KEY_HEADER}: give one, of 1 to {KEY_CHARACTERS} printable ASCII characters")
    return key


@dataclass(slots=True)
class Keeping:
    """The answer to one request, to be kept with what it changes. Without a key nothing is kept."""

    uid: int = NOBODY
    key: str | None = None
    request_sha256: str = ""
    now_unix_s: float = 0.0
    done: bool = False

    def records(self, reply: object) -> tuple[Record, ...]:
        """What is to be committed with the change; once it is, `done`."""
        self.done = True
        if self.key is None:
            return ()
        body = zlib.compress(json_text(reply))
        return (
            SaveAnswer(
                self.uid,
                self.key,
                self.request_sha256,
                self.now_unix_s,
                body if len(body) <= ANSWER_LIMIT_BYTES else None,
                self.now_unix_s - KEPT_S,
                KEPT_ANSWERS,
            ),
        )


@dataclass(slots=True)
class _Turn:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    waiting: int = 0


class Answers:
    """The answers that were given, by user and key."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turns: dict[tuple[int, str], _Turn] = {}

    @contextlib.asynccontextmanager
    async def turn(self, request: Request, path: str, body: Body) -> AsyncIterator[tuple[Keeping, bytes | None]]:
        """What to keep the answer by, and the answer that was given already, if one was.

        Raises:
            ApiError: 400, 409 or 422.
            StoreBusyError: it can't be looked up, so that nothing may be done.
        """
        key, peer = key_of(request), getattr(request.state, PEER, None)
        if key is None:
            yield Keeping(), None
            return
        uid = NOBODY if peer is None else peer.uid
        digest = hashlib.sha256(path.encode() + b"\0" + json_text(body)).hexdigest()
        turn = self._turns.setdefault((uid, key), _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                now_unix_s = self._service.clock.now().unix_s
                known = await self._service.store.answer_of(uid, key, now_unix_s - KEPT_S)
                first = None if known is None else _again(known, digest, now_unix_s)
                yield Keeping(uid, key, digest, now_unix_s), first
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[uid, key]

    async def keep(self, keeping: Keeping, reply: object) -> None:
        """Keep the answer of a request that changed nothing in the store, where that is possible."""
        if keeping.key is not None and not keeping.done:
            with contextlib.suppress(StoreBusyError):
                await self._service.store.commit(keeping.records(reply))


def _again(known: KeptAnswer, digest: str, now_unix_s: float) -> bytes:
    age_s = max(0.0, now_unix_s - known.at_unix_s)
    if known.request_sha256 != digest:
        raise ApiError(
            422,
            "key_reused",
            f"this {KEY_HEADER} came {age_s:.0f} s ago with another request, and nothing was changed: "
            "give every request a key of its own",
        )
    if known.body is None:
        raise ApiError(
            409,
            "answer_not_kept",
            f"this was done {age_s:.0f} s ago and is not done again; its answer was too long to be kept",
        )
    return zlib.decompress(known.body)
