"""Text for people: what others wrote, made safe to show or to keep; sizes and counts.

Rules: nothing that a worker, a config or a driver wrote may move a terminal's cursor, break a line in two, or be
refused by UTF-8.
"""

from __future__ import annotations

from datetime import UTC, datetime

GIB = 1024**3
MIB = 1024**2


def printable(text: str) -> str:
    """`text` with everything that a terminal acts upon (controls, line breaks, lone surrogates) spelt out."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def legible(text: str) -> str:
    """`text` with every control spelt out but line breaks and tabs, which all readers of lines escape or frame.

    A NUL ends a text for some readers, ESC and CR turn it into numbers or colours for others.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate becomes '\ufffd'."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shortened(text: str, characters: int) -> str:
    """The beginning of `text`, and how much of it is missing."""
    if len(text) <= characters:
        return text
    return f"{text[:characters]}... ({len(text) - characters:,} more characters)"


def timestamp(unix_s: float) -> str:
    """UTC, RFC 3339, in milliseconds; an instant that no calendar has becomes the epoch."""
    try:
        instant = datetime.fromtimestamp(unix_s, UTC)
    except (ValueError, OverflowError, OSError):
        instant = datetime.fromtimestamp(0, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(size_bytes: int) -> str:
    """Bytes for people: in GiB with one digit, or, where that would be 0.0 GiB, in MiB or bytes."""
    if abs(size_bytes) >= GIB // 20:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB" if abs(size_bytes) >= MIB else f"{size_bytes} bytes"


def count(number: int, noun: str) -> str:
    """A number of things that have a regular plural, such as "1 attempt" and "2 attempts"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
