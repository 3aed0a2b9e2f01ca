"""The config: TOML to frozen `Settings`, or every error at once, each with its key path."""

from boundd.config.paths import find_config
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
]
