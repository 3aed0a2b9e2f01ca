"""What is kept of an output that outgrows its log: lines that tell of a result or a failure.

Rules: what is kept is bounded, and the first and the last of each kind are; what was looked for and found no room is
counted. What is looked for comes with the spec, because it belongs to the protocol, which a shim doesn't import.
"""

from __future__ import annotations

import re
from typing import Any

_LINE_BYTES = 64 * 1024
"""A longer line is let go, and counted where what is looked for is in it."""
_OVERLAP_BYTES = 1024
"""Of such a line so much stays: what is looked for may have begun in it."""
_END = re.compile(rb"[\r\n]")
"""A carriage return ends a line too: a progress bar may have no other end."""


class Kind:
    """Lines of one kind: those that hold one of some bytes, or in which a pattern finds something."""

    def __init__(self, wanted: dict[str, Any], room_bytes: int) -> None:
        self.needles = [needle.encode() for needle in wanted.get("needles", ())]
        pattern = wanted.get("pattern", "")
        self.pattern = re.compile(pattern) if pattern else None
        self.following: int = wanted.get("following", 0)
        self.left_out = 0
        self._first: list[tuple[int, bytes]] = []
        self._last: list[tuple[int, bytes]] = []
        self._first_room_bytes = room_bytes // 4
        self._last_room_bytes = room_bytes - self._first_room_bytes
        self._last_bytes = 0

    def may_be_in(self, data: bytes) -> bool:
        """Whether a line of this kind may be in `data`; quick where it isn't."""
        if self.pattern is not None:
            return True
        return any(needle in data for needle in self.needles)

    def is_one(self, line: bytes) -> bool:
        """Whether this line is of the kind."""
        if self.pattern is not None:
            return self.pattern.search(line.decode("utf-8", "replace")) is not None
        return any(needle in line for needle in self.needles)

    def keep(self, number: int, line: bytes) -> None:
        """Keep a line, in the place of an earlier one where there is no more room."""
        if len(line) > self._last_room_bytes:
            self.left_out += 1
            return
        if not self._last and len(line) <= self._first_room_bytes:
            self._first_room_bytes -= len(line)
            self._first.append((number, line))
            return
        self._last.append((number, line))
        self._last_bytes += len(line)
        gone = 0
        while self._last_bytes > self._last_room_bytes and gone < len(self._last):
            self._last_bytes -= len(self._last[gone][1])
            gone += 1
        if gone:
            del self._last[:gone]
            self.left_out += gone

    def lines(self) -> list[tuple[int, bytes]]:
        """What was kept, each with its number."""
        return self._first + self._last


class KeptLines:
    """Looks through an output, in whatever chunks it comes. A line belongs to the first kind that it is of."""

    def __init__(self, wanted: list[dict[str, Any]], room_bytes: int) -> None:
        self._kinds = [Kind(each, room_bytes // len(wanted)) for each in wanted]
        self._rest = b""
        self._number = 0
        self._following = 0
        self._followed: Kind | None = None

    @property
    def left_out(self) -> int:
        """How many lines were looked for and found no room."""
        return sum(kind.left_out for kind in self._kinds)

    def feed(self, data: bytes) -> None:
        """Read on."""
        text = self._rest + data
        if not self._following and not any(kind.may_be_in(text) for kind in self._kinds):
            # Most of a long output: nothing is looked at line by line.
            self._rest = text[max(text.rfind(b"\n"), text.rfind(b"\r")) + 1 :]
        else:
            *lines, self._rest = _END.split(text)
            for line in lines:
                self._take(line)
        if len(self._rest) > _LINE_BYTES:
            for kind in self._kinds:
                if kind.is_one(self._rest):
                    kind.left_out += 1
                    break
            self._rest = self._rest[-_OVERLAP_BYTES:]

    def finish(self) -> None:
        """The output has ended: its last line may have no end."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def text(self) -> bytes:
        """The lines that were kept, in their order."""
        lines = sorted(each for kind in self._kinds for each in kind.lines())
        return b"".join(line + b"\n" for _, line in lines)

    def _take(self, line: bytes) -> None:
        self._number += 1
        for kind in self._kinds:
            if kind.is_one(line):
                kind.keep(self._number, line)
                self._following, self._followed = kind.following, kind
                return
        if self._following and self._followed is not None:
            self._following -= 1
            self._followed.keep(self._number, line)
