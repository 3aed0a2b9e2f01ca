"""The config: TOML to frozen `Settings`, or every error at once, each with its key path.

What is named here is imported when it is first used: where a config's files are must be known before pydantic, which
takes a quarter of a second, is worth its import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boundd.config.paths import find_config, state_dir_of
    from boundd.config.settings import (
        ModelEntry,
        Settings,
        check_writable,
        command_for,
        load,
        model_value,
        scorer_value,
    )
    from boundd.config.units import parse_duration, parse_size

_HOMES = {
    **dict.fromkeys(("find_config", "state_dir_of"), "paths"),
    **dict.fromkeys(("parse_duration", "parse_size"), "units"),
    **dict.fromkeys(("ModelEntry", "Settings", "check_writable", "command_for", "load"), "settings"),
    **dict.fromkeys(("model_value", "scorer_value"), "settings"),
}

__all__ = [
    "ModelEntry",
    "Settings",
    "check_writable",
    "command_for",
    "find_config",
    "load",
    "model_value",
    "parse_duration",
    "parse_size",
    "scorer_value",
    "state_dir_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
