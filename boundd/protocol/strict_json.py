"""JSON as both sides can store it again: finite numbers, 64-bit integers, real text, bounded depth.

Python's own parser takes `NaN`, `1e999`, integers of a thousand digits, repeated keys and lone surrogates.
Each of those breaks something later (SQLite, another language's parser, an encode to UTF-8), far from the
worker that wrote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

INT_MIN = -(2**63)
INT_MAX = 2**63 - 1
MAX_DEPTH = 64
_MAX_INT_DIGITS = 20  # a 64-bit integer has at most 19 digits and a sign


class StrictJsonError(ValueError):
    """The text is not JSON that both sides can hold; the message says what is wrong with it."""


def loads(text: str) -> Json:
    """Parse `text` strictly.

    Raises:
        StrictJsonError: for anything that is not JSON, and for NaN, infinities, integers past 64 bits,
            repeated keys, lone surrogates and nesting deeper than `MAX_DEPTH`.
    """
    try:
        value: Json = json.loads(
            text,
            parse_constant=_reject_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise StrictJsonError(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"not JSON: {error.msg} at character {error.pos}") from None
    _check_tree(value)
    return value


def dumps(value: Json) -> str:
    """One line of compact ASCII JSON that `loads` accepts.

    Raises:
        StrictJsonError: when the value holds what `loads` would refuse.
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        raise StrictJsonError(f"can't be written as JSON: {error}") from None
    loads(text)
    return text


def _reject_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not a number JSON allows")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_INT_DIGITS or not INT_MIN <= (value := int(digits)) <= INT_MAX:
        raise StrictJsonError(f"the integer {digits[:24]}… does not fit 64 bits")
    return value


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise StrictJsonError(f"the number {digits[:24]} is not finite")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise StrictJsonError(f"the key {twice!a} appears twice")
    return result


def _check_tree(value: Json) -> None:
    """Refuse lone surrogates and too much depth, without recursing (the depth is what is being checked)."""
    stack: list[tuple[Json, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise StrictJsonError(f"nested deeper than {MAX_DEPTH} levels")
        children: Iterable[Json] = ()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, Mapping):
            for name in item:
                _check_text(name)
            children = item.values()
        elif isinstance(item, Sequence):
            children = item
        stack.extend((child, depth + 1) for child in children)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StrictJsonError("text holds a lone surrogate") from None
