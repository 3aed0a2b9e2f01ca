"""Reads the points that earlier attempts of the same cell have measured, so that a new attempt goes on from there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from boundd.protocol.lines import LineSplitter, MalformedLineError, Point, name_of, parse_line

MAX_READ_BYTES = 64 << 20
"""Read at most of one file. The lines of a cell take a few kilobytes."""


def read_earlier(paths: Iterable[Path], digest: str) -> dict[str, Point]:
    """The last line of each point that was measured with this instrument digest, by `name_of` its parameters.

    Unreadable files and malformed lines are skipped; those points are measured again.

    Args:
        paths: results files, the oldest first.
        digest: stands for all that a measurement depends on; points of another digest are not comparable.
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
