"""What can be wrong with a config although each of its values has the right form.

Rules: each check reads the tables named beside it in `CHECKS`, gives all that it finds, and is left out where one of
these tables could not be read, because its findings might only follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from boundd.catalogue.models import RANDOM_MODELS
from boundd.config.builtin_checks import builtin_errors
from boundd.config.command import ALWAYS_KNOWN, placeholders
from boundd.config.reading import Reading, key_path, nearest
from boundd.config.schema import Config
from boundd.core.model.cells import canonical_json
from boundd.protocol.environment import CUDA_DEVICE_ORDER, VARIABLES
from boundd.protocol.script_output import ScriptResults, pattern_problem
from boundd.protocol.strict_json import INT_MAX, INT_MIN

Check: TypeAlias = Callable[[Config], Iterator[str]]
_RESERVED = (*ALWAYS_KNOWN,)


def semantic_errors(reading: Reading) -> list[str]:
    """Everything that the checks find in the tables that could be read."""
    return [error for check, tables in CHECKS if not reading.tainted & tables for error in check(reading.config)]


def _names(config: Config) -> Iterator[str]:
    """Axis and constant names: usable in a placeholder and in a query, and each used once."""
    for table, names in (("axes", config.matrix.axes), ("constants", config.matrix.constants)):
        for name in names:
            path = key_path("matrix", table, name)
            if name in _RESERVED:
                yield f"{path}: {{{name}}} already means something else in a command: choose another name"
            elif not name or not name.isprintable() or any(sign in name for sign in "{}= \t"):
                yield f"{path}: a name needs visible characters without spaces, braces or '=': choose another name"
    for name in config.matrix.axes:
        if name in config.matrix.constants:
            yield f"{key_path('matrix', 'constants', name)}: is an axis too: keep one of the two"


def _values(config: Config) -> Iterator[str]:
    """Values are JSON, and no axis has one twice."""
    matrix = config.matrix
    for name, values in matrix.axes.items():
        seen: dict[str, int] = {}
        for place, value in enumerate(values):
            path = key_path("matrix", "axes", name, place)
            if problem := _not_json(value):
                yield f"{path}: {problem}"
                continue
            text = canonical_json(value)
            if text in seen:
                yield f"{path}: {text} is already at [{seen[text]}]: take one of them out"
            seen.setdefault(text, place)
    tables: list[tuple[tuple[str | int, ...], Mapping[str, Any]]] = [(("matrix", "constants"), matrix.constants)]
    tables += [(("matrix", "exclude", place), table) for place, table in enumerate(matrix.exclude)]
    tables += [(("matrix", "include", place), table) for place, table in enumerate(matrix.include)]
    for location, table in tables:
        for name, value in table.items():
            if problem := _not_json(value):
                yield f"{key_path(*location, name)}: {problem}"


def _patterns(config: Config) -> Iterator[str]:
    """Excludes and includes speak of axes and constants that there are; an include gives every axis a value."""
    known = [*config.matrix.axes, *config.matrix.constants]
    for place, pattern in enumerate(config.matrix.exclude):
        yield from _unknown_names(("matrix", "exclude", place), pattern, known)
    for place, values in enumerate(config.matrix.include):
        yield from _unknown_names(("matrix", "include", place), values, known)
        missing = [name for name in config.matrix.axes if name not in values]
        if missing:
            yield f"{key_path('matrix', 'include', place)}: gives no value for {', '.join(missing)}: name every axis"


def _rules(config: Config) -> Iterator[str]:
    """Rules match on axes and constants that there are."""
    known = [*config.matrix.axes, *config.matrix.constants]
    for place, rule in enumerate(config.rule):
        yield from _unknown_names(("rule", place, "match"), rule.match, known)
        for name, value in rule.match.items():
            if problem := _not_json(value):
                yield f"{key_path('rule', place, 'match', name)}: {problem}"


def _unknown_names(location: Sequence[str | int], table: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    for name in table:
        if name not in known:
            yield f"{key_path(*location, name)}: is no axis and no constant: {nearest(name, known)}"


def _command(config: Config) -> Iterator[str]:
    """The command names a program, and its placeholders can be filled for every cell."""
    command = config.worker.command
    if not command or not command[0]:
        yield 'worker.command: is empty: name the program first, such as ["{python}", "-m", "boundd.worker"]'
    known = [*ALWAYS_KNOWN, *config.matrix.axes, *config.matrix.constants]
    arguments = [("wrapper", place, text) for place, text in enumerate(config.worker.wrapper)]
    arguments += [("command", place, text) for place, text in enumerate(command)]
    if config.worker.wrapper and not config.worker.wrapper[0]:
        yield 'worker.wrapper: names no program: name it first, such as ["nice", "-n", "10"], or take it out'
    for key, place, template in arguments:
        path = key_path("worker", key, place)
        try:
            names = placeholders(template)
        except ValueError as error:
            yield f"{path}: {error}"
            continue
        for name in names:
            if name not in known:
                hint = nearest(name, known)
                yield f"{path}: {{{name}}} is no axis and no constant: {hint} ('{{{{' is a brace itself)"


def _pattern(config: Config) -> Iterator[str]:
    """A pattern is one, is used, and reads the sample."""
    worker = config.worker
    if worker.sample and worker.result != "stdout":
        yield 'worker.sample: is tried with result = "stdout" alone: set that, or take the sample out'
    if worker.pattern and worker.result != "stdout":
        yield 'worker.pattern: is used with result = "stdout" alone: set that, or take the pattern out'
    elif worker.pattern:
        if problem := pattern_problem(worker.pattern, worker.sample):
            yield f"worker.pattern: {problem}"
    elif worker.sample:
        found = ScriptResults.of(worker.sample)
        if found.malformed or found.largest is None:
            why = found.malformed or found.unread or "it has no `speedup: X`"
            yield f"worker.sample: nothing is read from it ({why}): say with worker.pattern where the result is"


def _environment(config: Config) -> Iterator[str]:
    """Variable names that a process can be given, and that boundd does not set itself."""
    for name in config.worker.env:
        path = key_path("worker", "env", name)
        if not name or "=" in name or "\0" in name:
            yield f"{path}: a variable's name can't be empty or hold '=' or NUL: choose another name"
        elif name in VARIABLES or name == CUDA_DEVICE_ORDER:
            yield f"{path}: boundd sets this for every attempt: take it out"


def _simulated(config: Config) -> Iterator[str]:
    """Simulated devices and their backend go together."""
    devices = config.devices
    if devices.simulated and devices.backend != "simulated":
        yield (
            f'devices.simulated: is only for backend = "simulated", and backend is "{devices.backend}": '
            "change the backend, or take these devices out"
        )
    if devices.backend == "simulated" and not devices.simulated:
        yield 'devices.simulated: backend is "simulated", and there is no [[devices.simulated]]: add at least one'


def _models(config: Config) -> Iterator[str]:
    """A model has a name, and what it is loaded from; random weights need an architecture that is known."""
    for name, model in config.models.items():
        if not name or "\0" in name:
            yield f"{key_path('models', name)}: a model needs a name without NUL characters"
        if model.weights == "random" and not {name, model.source} & set(RANDOM_MODELS):
            yield (
                f'{key_path("models", name, "weights")}: "random" builds {", ".join(RANDOM_MODELS)} only: '
                "name the model so, or give one of these as its source"
            )
        if model.weights == "pretrained" and not model.source:
            yield f"{key_path('models', name, 'source')}: is missing: give a hub id, or a folder"


def _not_json(value: Any) -> str:
    """Why a value can't be part of a cell's key or an argument; empty where it can."""
    if isinstance(value, str):
        return "holds a NUL character, which no argument can hold: take it out" if "\0" in value else ""
    if isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if INT_MIN <= value <= INT_MAX else "is over 64 bits: write it as text in quotes"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"is {value}, which JSON can't hold: give a finite number"
    if isinstance(value, list):
        return next(filter(None, map(_not_json, value)), "")
    if isinstance(value, dict):
        return next(filter(None, map(_not_json, [*value, *value.values()])), "")
    return f"is a {type(value).__name__} ({value}), which JSON can't hold: write it as text in quotes"


def _builtin(config: Config) -> Iterator[str]:
    # Values that aren't JSON at all are told by `_values`, and would only confuse this check.
    if not any(_values(config)):
        yield from builtin_errors(config)


CHECKS: tuple[tuple[Check, frozenset[str]], ...] = (
    (_names, frozenset({"matrix"})),
    (_values, frozenset({"matrix"})),
    (_patterns, frozenset({"matrix"})),
    (_rules, frozenset({"matrix", "rule"})),
    (_command, frozenset({"matrix", "worker"})),
    (_pattern, frozenset({"worker"})),
    (_environment, frozenset({"worker"})),
    (_simulated, frozenset({"devices"})),
    (_models, frozenset({"models"})),
    (_builtin, frozenset({"matrix", "worker", "models"})),
)
