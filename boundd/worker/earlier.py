"""Points that earlier attempts of the same cell measured: read back, so that a worker that was killed in its
twentieth minute is not measured again from its first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from boundd.protocol.lines import LineSplitter, MalformedLineError, Point, name_of, parse_line

MAX_READ_BYTES = 64 << 20
"""Of one file; a cell's lines take a few kilobytes."""


def read_earlier(paths: Iterable[Path], digest: str) -> dict[str, Point]:
    """The last line of each point that was measured with the instrument of this digest, by its name.

    What can't be read is left out: at worst it is measured again.

    Args:
        paths: results files, the oldest first.
        digest: today's instrument; points of another one are not comparable.
    """
    found: dict[str, Point] = {}
    for path in paths:
        for line in _lines(path):
            try:
                point = parse_line(line)
            except MalformedLineError:
                continue
            if isinstance(point, Point) and point.extra.get("instrument") == digest:
                found[name_of(point.parameters)] = point
    return found


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            return LineSplitter().feed(file.read(MAX_READ_BYTES))
    except OSError:
        return []
