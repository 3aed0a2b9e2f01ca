"""Reading what a worker wrote, which may be anything: gigabytes, one endless line, no file at all but a pipe.

Whatever it is, no more than a chunk of it is in memory at a time, nothing but a regular file is read, and a link is not
followed: the daemon may be allowed to read what the worker's author is not.
"""

from __future__ import annotations

from boundd.core.lifecycle.classification import Printed
from boundd.ports import Launcher
from boundd.protocol.plain_file import NotAFileError

CHUNK_BYTES = 256 * 1024
LOG_HEAD_BYTES = 64 * 1024
LOG_TAIL_BYTES = 192 * 1024
"""What a verdict looks at of a log: how it began, and the last that was said. `logs` shows all that was kept."""
_LEFT_OUT = "\n[boundd: the middle is not looked at]\n"
_CARRIED_BYTES = 1024
"""So much of an unfinished line is kept for the next chunk: more than a `speedup: 1.23` is long."""


async def read_log(launcher: Launcher, attempt_id: str) -> str:
    """The head and the tail of a log; empty where there is none.

    Raises:
        OSError: it can't be read now.
    """
    try:
        size = await launcher.log_size_bytes(attempt_id)
        if size is None:
            return ""
        head = await _read(launcher, attempt_id, 0, LOG_HEAD_BYTES)
        start = max(len(head), size - LOG_TAIL_BYTES)
        tail = await _read(launcher, attempt_id, start, LOG_TAIL_BYTES)
    except NotAFileError:
        return ""
    if start == len(head):
        return (head + tail).decode(errors="replace")
    return head.decode(errors="replace") + _LEFT_OUT + tail.decode(errors="replace")


async def _read(launcher: Launcher, attempt_id: str, offset: int, most_bytes: int) -> bytes:
    """So much of a log from `offset` on, or what there is of it."""
    found = b""
    while len(found) < most_bytes:
        data = await launcher.read_log(attempt_id, offset + len(found), min(CHUNK_BYTES, most_bytes - len(found)))
        if not data:
            break
        found += data
    return found


async def read_printed(launcher: Launcher, attempt_id: str) -> Printed:
    """The speed-ups that somebody's own script has printed, in all of its log.

    Raises:
        OSError: it can't be read now.
    """
    found, carried, offset = Printed(), b"", 0
    while True:
        try:
            data = await launcher.read_log(attempt_id, offset, CHUNK_BYTES)
        except NotAFileError:
            return found
        offset += len(data)
        lines, newline, rest = (carried + data).rpartition(b"\n")
        if len(rest) > _CARRIED_BYTES or not data:
            lines, newline, rest = lines + newline + rest, b"", b""
        found += Printed.of((lines + newline).decode(errors="replace"))
        carried = rest
        if not data:
            return found
