"""Reading what a worker wrote, which may be anything: gigabytes, one endless line, no file at all but a pipe.

Whatever it is, no more than a chunk of it is in memory at a time, nothing but a regular file is read, and a link is not
followed: the daemon may be allowed to read what the worker's author is not.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from boundd.ports import Launcher
from boundd.protocol import out_of_memory, script_output
from boundd.protocol.regular_file import NotAFileError
from boundd.protocol.script_output import ScriptOutputReader, ScriptResults

CHUNK_BYTES = 256 * 1024
LOG_HEAD_BYTES = 64 * 1024
LOG_TAIL_BYTES = 192 * 1024
"""What a verdict looks at of a log: how it began, the last that was said, and in between what tells of a failure.
`logs` shows all that was kept."""
FAILURE_LINES_BYTES = 64 * 1024
"""So much of what is in between, of each kind: the last of it."""
_LEFT_OUT = "\n[boundd: of the middle only lines that tell of a failure are looked at]\n"
_LINE_BYTES = 64 * 1024
_CUT = re.compile(
    rb"\n\[boundd: \d+ bytes (?:left out here|could not be written(?: here)?)"
    rb"(; the lines of them that tell of a result or a failure:)?\]\n"
)
"""Where a shim left something out of a log, and whether it kept lines of that."""
_GOES_ON = re.compile(rb"^\[boundd: (\d+) more such lines found no room; the last of the output:\]\n", re.MULTILINE)
_MARK_BYTES = 256
"""A mark is shorter."""


def kept_lines(*, from_stdout: bool, pattern: str = "") -> tuple[Mapping[str, Any], ...]:
    """What a shim keeps of an output that outgrows its log, so that a verdict sees the result and why there is none."""
    kinds: list[Mapping[str, Any]] = []
    if from_stdout and pattern:
        kinds.append({"pattern": pattern})
    elif from_stdout:
        kinds.append({"needles": [script_output.SPEEDUP, script_output.SCORE_LOSS]})
    kinds.append({"needles": list(out_of_memory.NEEDLES), "following": out_of_memory.FOLLOWING_LINES})
    kinds.append({"needles": [*out_of_memory.FAILURE_NEEDLES, *out_of_memory.LEVEL_NEEDLES], "following": 1})
    return tuple(kinds)


async def read_log(launcher: Launcher, attempt_id: str) -> str:
    """The head and the tail of a log, and between them the lines that tell of a failure; empty where there is no log.

    Raises:
        OSError: it can't be read now.
    """
    try:
        size = await launcher.log_size_bytes(attempt_id)
        if size is None:
            return ""
        head = b"".join([data async for data in _chunks(launcher, attempt_id, 0, LOG_HEAD_BYTES)])
        start = max(len(head), size - LOG_TAIL_BYTES)
        told = _FailureLineReader()
        async for data in _chunks(launcher, attempt_id, len(head), start):
            told.feed(data)
        tail = b"".join([data async for data in _chunks(launcher, attempt_id, start, start + LOG_TAIL_BYTES)])
    except NotAFileError:
        return ""
    if start == len(head):
        return (head + tail).decode(errors="replace")
    return _LEFT_OUT.join(part.decode(errors="replace") for part in (head, told.text(), tail) if part)


async def read_script_results(launcher: Launcher, attempt_id: str, pattern: str = "") -> ScriptResults:
    """The results that somebody's own script has printed, in all of its log, by `speedup: X` or by a pattern.

    Raises:
        OSError: it can't be read now.
    """
    reader = LogReader(pattern)
    try:
        async for data in _chunks(launcher, attempt_id, 0, None):
            reader.feed(data)
    except NotAFileError:
        return ScriptResults()
    return reader.finish()


async def _chunks(launcher: Launcher, attempt_id: str, offset: int, until: int | None) -> AsyncIterator[bytes]:
    """A log from `offset` to `until`, or to its end."""
    while until is None or offset < until:
        max_bytes = CHUNK_BYTES if until is None else min(CHUNK_BYTES, until - offset)
        data = await launcher.read_log(attempt_id, offset, max_bytes)
        if not data:
            return
        offset += len(data)
        yield data


class LogReader:
    """Reads the results in a log that may have been cut.

    A line that it broke off in is not believed: half a number is another one.
    """

    def __init__(self, pattern: str = "") -> None:
        self._reader = ScriptOutputReader(pattern)
        self._pending = b""
        self._among_kept = False
        self._is_done = False

    def feed(self, data: bytes) -> None:
        """Read on."""
        self._pending += data
        while not self._is_done and (found := (_GOES_ON if self._among_kept else _CUT).search(self._pending)):
            self._reader.feed(self._pending[: found.start()])
            self._pending = self._pending[found.end() :]
            if self._among_kept:
                # All that counts of the rest has been kept, whole lines of it.
                self._is_done = True
                if int(found[1]):
                    self._reader.add_problem(
                        "its output is larger than its log, and lines that tell of results or failures found no room "
                        "in it: let the script print less"
                    )
                break
            self._reader.discard_line()
            self._reader.skip_lines(found.group().count(b"\n"))
            self._among_kept = found[1] is not None
            if not self._among_kept:
                self._reader.skip_rest_of_line()
        if self._is_done:
            self._pending = b""
        elif len(self._pending) > _MARK_BYTES:
            # What may be the beginning of a mark waits for the rest.
            self._reader.feed(self._pending[:-_MARK_BYTES])
            self._pending = self._pending[-_MARK_BYTES:]

    def finish(self) -> ScriptResults:
        """The results; the log has ended."""
        if not self._is_done:
            self._reader.feed(self._pending)
        return self._reader.finish()


class _LineBuffer:
    """Lines that hold one of some texts: the last of them, FAILURE_LINES_BYTES in all."""

    def __init__(self, needles: tuple[str, ...]) -> None:
        self._needles = tuple(needle.encode() for needle in needles)
        self._pattern = re.compile(b"|".join(map(re.escape, self._needles)))
        self._bytes = 0
        self.lines: deque[tuple[int, bytes]] = deque()

    def may_be_in(self, data: bytes) -> bool:
        """Quick, where it is not."""
        return any(needle in data for needle in self._needles)

    def found(self, line: bytes) -> bool:
        """Whether it is one of them."""
        return self._pattern.search(line) is not None

    def keep(self, number: int, line: bytes) -> None:
        """Keep it, in the place of earlier ones where there are too many."""
        self.lines.append((number, line))
        self._bytes += len(line)
        while self._bytes > FAILURE_LINES_BYTES and len(self.lines) > 1:
            self._bytes -= len(self.lines.popleft()[1])


class _FailureLineReader:
    """Picks the lines that tell of a failure out of what it is fed."""

    def __init__(self) -> None:
        self._kinds = (
            _LineBuffer(out_of_memory.NEEDLES),
            _LineBuffer(out_of_memory.FAILURE_NEEDLES + out_of_memory.LEVEL_NEEDLES),
        )
        self._rest = b""
        self._number = 0
        self._following = 0
        self._followed = self._kinds[0]

    def feed(self, data: bytes) -> None:
        """Read on."""
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest[-_LINE_BYTES:]
        if not newline:
            return
        if not self._following and not any(kind.may_be_in(whole) for kind in self._kinds):
            self._number += whole.count(b"\n") + 1
            return
        for line in whole.split(b"\n"):
            self._line(line[-_LINE_BYTES:])

    def text(self) -> bytes:
        """What was picked, in its order."""
        return b"\n".join(line for _, line in sorted(each for kind in self._kinds for each in kind.lines))

    def _line(self, line: bytes) -> None:
        self._number += 1
        kind = next((kind for kind in self._kinds if kind.found(line)), None)
        if kind is not None:
            self._following, self._followed = out_of_memory.FOLLOWING_LINES, kind
        elif self._following:
            self._following -= 1
        else:
            return
        self._followed.keep(self._number, line)
