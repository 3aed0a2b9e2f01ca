"""Sizes and durations as people write them, each with its unit, to bytes and seconds."""

from __future__ import annotations

import re
from itertools import pairwise

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_SIZE_UNITS = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_SIZE_HELP = 'write a number and a unit, such as "512MiB", "24GiB" or "24GB"'
MAX_SIZE_BYTES = 2**63 - 1
"""What SQLite and JSON readers hold in an integer."""

_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_DURATION_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_HELP = 'write numbers and units (d, h, m, s, ms), such as "90s", "1h30m" or "30d"'
MAX_DURATION_S = 36_500 * 86400.0
"""A hundred years; more is a typing error, and overflows the clocks it would be added to."""


def parse_size(text: object) -> int:
    """Bytes: "24GiB" is 24 x 1024^3, "24GB" is 24 x 1000^3; a fraction of a byte is dropped.

    Raises:
        ValueError: for what isn't a number and a unit; the message gives examples.
    """
    if not isinstance(text, str):
        raise ValueError(f"must be a size in quotes, not {text!r}: {_SIZE_HELP}")
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: {_SIZE_HELP}")
    number, unit = match[1], match[2]
    if not unit:
        raise ValueError(f"{text!r} has no unit: {_SIZE_HELP}")
    factor = _SIZE_UNITS.get(unit.casefold())
    if factor is None:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}: {_SIZE_HELP}")
    # Integers throughout, because a float loses bytes from 2^53 on.
    whole, _, fraction = number.partition(".")
    size_bytes: int = int(whole) * factor + (int(fraction) * factor // int(10 ** len(fraction)) if fraction else 0)
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is more than {MAX_SIZE_BYTES} bytes: {_SIZE_HELP}")
    return size_bytes


def parse_duration(text: object) -> float:
    """Seconds: "1h30m" is 5400.0. Each unit may come once, the larger before the smaller.

    Raises:
        ValueError: for what isn't numbers with units; the message gives examples.
    """
    if not isinstance(text, str):
        raise ValueError(f"must be a duration in quotes, not {text!r}: {_DURATION_HELP}")
    compact = text.strip()
    if _DURATION.fullmatch(compact) is None:
        raise ValueError(f"{text!r} is not a duration: {_DURATION_HELP}")
    parts = _DURATION_PART.findall(compact)
    units_s = [_DURATION_UNITS_S[unit] for _, unit in parts]
    if any(first <= second for first, second in pairwise(units_s)):
        raise ValueError(f"{text!r} repeats a unit or has them out of order: {_DURATION_HELP}")
    seconds = sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{text!r} is over a hundred years: {_DURATION_HELP}")
    return seconds
