"""Answers that go on: a log as it grows, and what happens as it happens.

Rules: a slow reader holds up nobody but itself; an answer ends when its client goes or the daemon stops.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, BinaryIO

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from boundd.control.errors import not_found
from boundd.control.views import timestamp
from boundd.core.model.effects import Note
from boundd.core.model.events import Now
from boundd.ports import Launcher, Service
from boundd.protocol.regular_file import NotAFileError

CHUNK_BYTES = 64 * 1024
POLL_S = 0.2
HEARTBEAT_S = 15.0


async def read_log(
    launcher: Launcher, attempt_id: str, offset: int, limit: int | None, is_live: Callable[[], bool] | None
) -> AsyncIterator[bytes]:
    """A log's bytes from `offset`, at most `limit` of them; with `is_live`, as it grows, until that is false.

    A log that isn't there yet is empty. One that got shorter (its tail was written anew) goes on at its new end; one
    that isn't a file any more has come to its end.
    """
    position, left = offset, limit
    while left is None or left > 0:
        was_live = is_live is not None and is_live()
        try:
            data = await launcher.read_log(
                attempt_id, position, min(CHUNK_BYTES, CHUNK_BYTES if left is None else left)
            )
            if not data:
                position = min(position, await launcher.log_size_bytes(attempt_id) or 0)
        except NotAFileError:
            return
        if data:
            position += len(data)
            left = None if left is None else left - len(data)
            yield data
            continue
        if not was_live:
            return
        await anyio.sleep(POLL_S)


class OpenFileResponse(StreamingResponse):
    """An open file from where it stands to its end; closed, whether or not the client stays to the end of it."""

    def __init__(self, file: BinaryIO, *, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(file), media_type=media_type, headers=headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while data := await anyio.to_thread.run_sync(file.read, CHUNK_BYTES):
        yield data


async def log_size(launcher: Launcher, attempt_id: str) -> int | None:
    """The log's size in bytes; None where there is none.

    Raises:
        ApiError: there is something else in its place, which is not read.
    """
    try:
        return await launcher.log_size_bytes(attempt_id)
    except NotAFileError as error:
        raise not_found(f"there is no log to be read: {error}") from None


async def events(service: Service) -> AsyncIterator[bytes]:
    """Every note from now on as a server-sent event, with a comment now and then so that a dead client is noticed."""
    with service.subscribe() as notes:
        yield b": boundd events\n\n"
        while True:
            item: tuple[Note, Now] | None = None
            try:
                with anyio.move_on_after(HEARTBEAT_S):
                    item = await notes.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                return
            yield b": still here\n\n" if item is None else _event(*item)


def _event(note: Note, now: Now) -> bytes:
    document: dict[str, Any] = {
        "at": timestamp(now.unix_s),
        "action": note.action.value,
        "level": note.level,
        "message": note.message,
        "cell": note.cell,
        "attempt": note.attempt,
        "device": note.device,
        "fields": dict(note.fields),
    }
    # ASCII JSON has neither line breaks nor lone surrogates in it, either of which would break the stream.
    return f"event: {note.action.value}\ndata: {json.dumps(document, default=str)}\n\n".encode()
