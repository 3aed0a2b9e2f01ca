"""From the text of a config to its tables, with every error in words that name the key.

Rules: one bad value hides no other error. What could not be understood is taken out and the rest is read again, so
that `checks` can look at it; `tainted` names the tables whose other errors may only follow from these.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from boundd import locations
from boundd.config.schema import Config
from boundd.ports import ConfigError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KINDS = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list in [brackets]",
    "dict_type": "a table",
    "model_type": "a table",
}
_ALONE = {
    "daemon": ("export_format", "safety_factor", "keep_logs", "disk_reserve"),
    "worker": ("timeout", "grace", "python"),
}
"""Keys that no check looks at beside others: an error in one of them makes no other error a mere consequence."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read, what could not, and the top-level tables that errors touched."""

    config: Config
    errors: tuple[str, ...]
    tainted: frozenset[str]


def key_path(*parts: str | int) -> str:
    """The path of a key as TOML writes it, quoted where it must be; places in a list count from 0."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
            text += f".{name}" if text else name
    return text


def nearest(name: str, known: Collection[str]) -> str:
    """A hint: the known name that `name` may have meant, or all of them where none is near."""
    folded = {candidate.casefold().replace("-", "_"): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold().replace("-", "_"), list(folded), n=1, cutoff=0.5)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return "known: " + ", ".join(sorted(known)) if known else "none is known here"


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        ConfigError: the file can't be read, or is not TOML; with the line where it is not.
    """
    try:
        return locations.read_toml(path)
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror or error}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text (byte {error.start}): save it as UTF-8"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: is nested too deeply to be a config"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from None


def read_tables(raw: dict[str, Any]) -> Reading:
    """The tables, with all that is wrong with single values."""
    errors: list[str] = []
    tainted: set[str] = set()
    data = copy.deepcopy(raw)
    while True:
        try:
            return Reading(Config.model_validate(data), tuple(errors), frozenset(tainted))
        except ValidationError as error:
            # Deepest and last first, so that places in lists stay true while things are taken out.
            details = error.errors(include_url=False)
            if not errors:
                # The first reading finds everything; later ones would miss what was taken out.
                errors = [f"{key_path(*detail['loc'])}: {_words(detail)}" for detail in details]
            tainted.update(*(_touched(detail["loc"]) for detail in details))
            removals = sorted({_removal(detail) for detail in details}, key=_order, reverse=True)
            if sum(_remove(data, location) for location in removals) == 0:
                return Reading(Config(), tuple(errors), frozenset(Config.model_fields))


def _words(detail: Mapping[str, Any]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key: {nearest(str(detail['loc'][-1]), _known_keys(detail['loc'][:-1]))}"
    if kind == "missing":
        return "is missing: " + _missing_help(str(detail["loc"][-1]))
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        return f"must be one of {', '.join(known)}, not {value!r}" + _literal_hint(value, known)
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, not {_shown(value)}"
    return f"{detail['msg']}, not {_shown(value)}"


def _literal_hint(value: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(value.casefold(), known, n=1, cutoff=0.6) if isinstance(value, str) else []
    return f": did you mean {close[0]!r}?" if close else ""


def _missing_help(name: str) -> str:
    return {
        "match": 'say which cells the rule is for, such as match = { model = "SDXL" }; match = {} is for all',
        "source": "say where the model is: a hub id or a folder",
        "name": "give the simulated device a name",
        "memory": 'say how much memory it has, such as "24GiB"',
    }.get(name, "give it a value")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _known_keys(location: Sequence[str | int]) -> Collection[str]:
    annotation: Any = Config
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        elif get_origin(annotation) in (list, dict):
            annotation = get_args(annotation)[-1]
    return list(annotation.model_fields) if hasattr(annotation, "model_fields") else []


def _touched(location: Sequence[str | int]) -> set[str]:
    """The tables that an error there may have spoiled: a misspelt one is one that is not there."""
    name = str(location[0])
    if name in Config.model_fields:
        meant = str(location[1]) if len(location) > 1 else ""
        close = difflib.get_close_matches(meant, list(_known_keys(location[:1])), n=1, cutoff=0.5)
        alone = bool(close) and close[0] in _ALONE.get(name, ())
        return set() if alone else {name}
    return set(difflib.get_close_matches(name, list(Config.model_fields), n=1, cutoff=0.5))


def _removal(detail: Mapping[str, Any]) -> tuple[str | int, ...]:
    location: tuple[str | int, ...] = detail["loc"]
    return location[:-1] if detail["type"] == "missing" else location


def _order(location: tuple[str | int, ...]) -> tuple[int, tuple[tuple[int, str], ...]]:
    return len(location), tuple((part, "") if isinstance(part, int) else (-1, part) for part in location)


def _remove(data: Any, location: tuple[str | int, ...]) -> bool:
    try:
        for part in location[:-1]:
            data = data[part]
        del data[location[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True
