"""Reading what a worker wrote, which may be anything: gigabytes, one endless line, no file at all but a pipe.

Whatever it is, no more than a chunk of it is in memory at a time, nothing but a regular file is read, and a link is not
followed: the daemon may be allowed to read what the worker's author is not.
"""

from __future__ import annotations

import os
from pathlib import Path

from boundd.core.lifecycle.classification import Printed
from boundd.protocol.plain_file import NotAFileError, open_plain

CHUNK_BYTES = 256 * 1024
LOG_HEAD_BYTES = 64 * 1024
LOG_TAIL_BYTES = 192 * 1024
"""What a verdict looks at of a log: how it began, and the last that was said. `logs` shows all that was kept."""
_LEFT_OUT = "\n[boundd: the middle is not looked at]\n"
_CARRIED_BYTES = 1024
"""So much of an unfinished line is kept for the next chunk: more than a `speedup: 1.23` is long."""


def read_chunk(path: Path, offset: int, most_bytes: int = CHUNK_BYTES) -> bytes:
    """Up to so many bytes from `offset` on; empty where there are none, or no file yet.

    Raises:
        NotAFileError: it is a link, a pipe, a folder, a device.
        OSError: it can't be read now.
    """
    file = open_plain(path)
    if file is None:
        return b""
    with file:
        file.seek(offset)
        return file.read(max(0, most_bytes))


def size_of(path: Path) -> int | None:
    """How many bytes a file has; None where there is none.

    Raises:
        NotAFileError: it is a link, a pipe, a folder, a device.
        OSError: it can't be told now.
    """
    file = open_plain(path)
    if file is None:
        return None
    with file:
        return os.fstat(file.fileno()).st_size


def read_log(path: Path) -> str:
    """The head and the tail of a log; empty where there is none.

    Raises:
        OSError: it can't be read now.
    """
    try:
        file = open_plain(path)
    except NotAFileError:
        file = None
    if file is None:
        return ""
    with file:
        size = os.fstat(file.fileno()).st_size
        if size <= LOG_HEAD_BYTES + LOG_TAIL_BYTES:
            return file.read(LOG_HEAD_BYTES + LOG_TAIL_BYTES).decode(errors="replace")
        head = file.read(LOG_HEAD_BYTES)
        file.seek(size - LOG_TAIL_BYTES)
        tail = file.read(LOG_TAIL_BYTES)
    return head.decode(errors="replace") + _LEFT_OUT + tail.decode(errors="replace")


def read_printed(path: Path) -> Printed:
    """The speed-ups that somebody's own script has printed, in all of its log.

    Raises:
        OSError: it can't be read now.
    """
    found, carried, offset = Printed(), b"", 0
    while True:
        try:
            data = read_chunk(path, offset)
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
