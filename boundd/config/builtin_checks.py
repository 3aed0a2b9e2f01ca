"""What the built-in worker can't measure, told before anything runs. Somebody's own script is never judged by this."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from boundd.catalogue.methods import parse_method
from boundd.catalogue.models import BUILTIN_MODELS
from boundd.catalogue.options import PARAMETERS
from boundd.catalogue.schedulers import resolve_scheduler
from boundd.config.command import BUILTIN_WORKER
from boundd.config.reading import key_path, nearest
from boundd.config.schema import Config
from boundd.core.model.cells import Cell

Judge: TypeAlias = Callable[[Any], str]
"""What is wrong with a value; empty where nothing is."""


def builtin_errors(config: Config) -> Iterator[str]:
    """What the built-in worker would refuse; nothing where the command is not the built-in worker."""
    if BUILTIN_WORKER not in config.worker.command:
        return
    judges = _judges(config)
    for path, name, value in _parameters(config):
        if (judge := judges.get(name)) and (problem := judge(value)):
            yield f"{path}: {problem}"
    yield from _missing(config)
    yield from _same_meaning(config)


def _parameters(config: Config) -> Iterator[tuple[str, str, Any]]:
    matrix = config.matrix
    for name, values in matrix.axes.items():
        for place, value in enumerate(values):
            yield key_path("matrix", "axes", name, place), name, value
    for name, value in matrix.constants.items():
        yield key_path("matrix", "constants", name), name, value
    for place, table in enumerate(matrix.include):
        for name, value in table.items():
            yield key_path("matrix", "include", place, name), name, value


def _judges(config: Config) -> Mapping[str, Judge]:
    return {
        **{name: option.problem for name, option in PARAMETERS.items() if option.kind != "name"},
        "model": _model(config),
        "scheduler": _resolved(resolve_scheduler, "DDIM"),
        "method": _resolved(parse_method, "deepcache"),
    }


def _model(config: Config) -> Judge:
    known = [*config.models, *BUILTIN_MODELS]

    def judge(value: Any) -> str:
        if value in known:
            return ""
        entry = key_path("models", str(value))
        return f"unknown model {value!r}: {nearest(str(value), known)} Another model needs an entry [{entry}]"

    return judge


def _resolved(resolve: Callable[[str], object], example: str) -> Judge:
    def judge(value: Any) -> str:
        if not isinstance(value, str):
            return f'must be a name, such as "{example}", not {value!r}'
        try:
            resolve(value)
        except ValueError as error:
            return str(error)
        return ""

    return judge


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _missing(config: Config) -> Iterator[str]:
    """What the worker must be told, and is told neither by the matrix nor by an option."""
    if not config.matrix.axes:
        return  # told as a matrix without cells
    for name, option in PARAMETERS.items():
        spelt = f"--{option.name}"
        given = any(part == spelt or part.startswith(f"{spelt}=") for part in config.worker.command)
        if option.is_needed and name not in config.matrix.axes and name not in config.matrix.constants and not given:
            yield f"matrix.axes: the built-in worker needs {name!r}: make it an axis or a constant"


def _same_meaning(config: Config) -> Iterator[str]:
    """Two names of an axis that mean one thing would be measured twice and contradict each other."""
    for name, resolve in (("scheduler", resolve_scheduler), ("method", parse_method)):
        seen: dict[object, str] = {}
        for place, value in enumerate(config.matrix.axes.get(name, [])):
            try:
                meaning = resolve(value) if isinstance(value, str) else None
            except ValueError:
                continue  # told by its judge
            if meaning is not None and meaning in seen and seen[meaning] != value:
                path = key_path("matrix", "axes", name, place)
                yield f"{path}: {value!r} means the same as {seen[meaning]!r}: take one of them out"
            seen.setdefault(meaning, value)


def cells_errors(config: Config, cells: Iterable[Cell]) -> Iterator[str]:
    """What can only be told of whole cells: T-GATE drops guidance after a step, and some cells have none."""
    if BUILTIN_WORKER not in config.worker.command:
        return
    told = set()
    for cell in cells:
        method, guidance = cell.parameters.get("method"), cell.parameters.get("guidance_scale")
        if not isinstance(method, str) or not _number(guidance) or guidance is None or guidance > 1:
            continue
        if "tgate" in [part.strip() for part in method.split("+")] and (method, guidance) not in told:
            told.add((method, guidance))
            yield (
                f"matrix: {cell.label}: guidance_scale {guidance} means no guidance, and {method!r} works by dropping "
                "it: set guidance_scale above 1, or exclude these cells"
            )
