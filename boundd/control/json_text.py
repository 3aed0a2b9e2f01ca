"""Answers as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, TypeAdapter

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="null"))


def json_text(value: object) -> bytes:
    """An answer's body. A measurement's details may hold an infinity that a script made: null, as JSON has none."""
    return _ANYTHING.dump_json(value)
