"""Standard streams that can't spoil what a command does.

Rules: a stream that was closed before the start (cron's wrappers, daemonize) is the null device, so that no file of
ours takes its number; one whose reader goes away (`| head`) takes what is written from then on and keeps nothing of it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNRESET, errno.EIO)
"""The other end of a pipe, socket or terminal is closed."""


class _Spared(io.FileIO):
    """A descriptor that becomes the null device once nobody reads it any more, and may end the command then."""

    ends = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            if self.ends:
                raise SystemExit(0) from None
            return len(memoryview(data))


def open_closed() -> None:
    """Have standard input, output and error be there, whatever was closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or _reading()
    sys.stdout = sys.stdout or spared(1)
    sys.stderr = sys.stderr or spared(2)


def spare_standard(*, ends: bool = False) -> None:
    """Write to standard output and error so that a reader who goes away is no error.

    With `ends`, the command ends with 0 once nobody reads its output: all that it does is to answer.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    sys.stdout, sys.stderr = spared(1, sys.stdout, ends=ends), spared(2, sys.stderr)


def spared(number: int, like: TextIO | None = None, *, ends: bool = False) -> TextIO:
    """A text stream on a standard descriptor that no reader who goes away makes fail."""
    encoding = getattr(like, "encoding", None) or "utf-8"
    raw = _Spared(number, "w", closefd=False)
    raw.ends = ends
    is_line_buffered = number == 2 or raw.isatty()
    errors = "backslashreplace" if number == 2 else getattr(like, "errors", None) or "surrogateescape"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=is_line_buffered, newline="\n"
    )


def _reading() -> TextIO:
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")
