"""The old speedup_bounds.json, read for `boundctl import`.

Rules: the file is somebody else's text: its keys are parsed as literals, never evaluated, and an entry that is not what
the old script wrote stops the import by name. The old key names a pipeline class and not a model; where it fits cells
of several models, nobody but the user can say which was meant.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeGuard

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.cells import Cell
from boundd.core.model.events import Imported
from boundd.core.model.outcomes import Measurement
from boundd.protocol import strict_json
from boundd.results.export import LEGACY_TAG, scheduler_class

FAILED = "failed_configs"
_ERRORS = {
    "cuda_oom": ErrorKind.OUT_OF_MEMORY,
    "timeout": ErrorKind.TIMEOUT,
    "subprocess_error": ErrorKind.OTHER,
    "unknown_error": ErrorKind.OTHER,
}
_FAILED_KEY = re.compile(r"(?P<pipeline>\w+?)_(?P<scheduler>[^_]+)_(?P<steps>[^_]+)_(?P<method>.+)", re.DOTALL)
_KEY_CHARACTERS = 2_000
"""Longer keys are no keys; Python's parser would take them all the same."""


class LegacyError(ValueError):
    """The operator's: this is not an old speedup_bounds.json, or the model named doesn't fit; says where."""


@dataclass(frozen=True, slots=True)
class LegacyBound:
    """An upper bound, and the parts of its key. `entry` is the key as it is in the file."""

    entry: str
    pipeline: str
    scheduler: str
    steps: str
    tolerance: float
    methods: tuple[str, ...]
    upper_bound: float


@dataclass(frozen=True, slots=True)
class LegacyFailure:
    """A failure, and the parts of its key."""

    entry: str
    pipeline: str
    scheduler: str
    steps: str
    methods: tuple[str, ...]
    kind: ErrorKind
    message: str
    at_unix_s: float | None


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """All that an old file said."""

    bounds: tuple[LegacyBound, ...] = ()
    failures: tuple[LegacyFailure, ...] = ()


class Ambiguous(NamedTuple):
    """An entry that fits cells of several models."""

    entry: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LegacyMatch:
    """What can be taken over, what needs --model, and what fits no one cell (`ENTRY: reason`)."""

    entries: tuple[Imported, ...] = ()
    ambiguous: tuple[Ambiguous, ...] = ()
    unmatched: tuple[str, ...] = ()


def parse_legacy(text: str) -> LegacyFile:
    """Read an old file.

    Raises:
        LegacyError: it is no such file; the message names the entry that is not as the old script wrote it.
    """
    try:
        document = strict_json.loads(text)
    except strict_json.StrictJsonError as error:
        raise LegacyError(f"not an old speedup_bounds.json: {error}") from None
    if not isinstance(document, Mapping):
        raise LegacyError("not an old speedup_bounds.json: it holds no JSON object")
    if str(document.get("format", "")).startswith("boundd/"):
        raise LegacyError("this is an export of boundd's own, which holds nothing to import from an old file")
    failed = document.get(FAILED, {})
    if not isinstance(failed, Mapping):
        raise LegacyError(f"{FAILED!r} is not an object")
    bounds = tuple(_bound(key, value) for key, value in document.items() if key != FAILED)
    return LegacyFile(bounds, tuple(_failure(key, value) for key, value in failed.items()))


def match_legacy(
    file: LegacyFile, cells: Iterable[Cell], pipeline_of: Mapping[str, str], model: str | None = None
) -> LegacyMatch:
    """Find the cells that an old file speaks of.

    Args:
        file: what the old file said.
        cells: the cells of the matrix.
        pipeline_of: models to pipeline classes.
        model: the one model that the file is about; None where its keys are to speak for themselves.

    Raises:
        LegacyError: no cell is of that model.
    """
    known = tuple(cells)
    models = sorted({str(cell.parameters.get("model")) for cell in known})
    if model is not None:
        if model not in models:
            raise LegacyError(f"no cell is of the model {model!r}; models of the matrix: {', '.join(models)}")
        known = tuple(cell for cell in known if cell.parameters.get("model") == model)
    matcher = _Matcher(known, pipeline_of)
    for bound in file.bounds:
        matcher.take(bound, bound.tolerance, partial(_imported_bound, bound))
    for failure in file.failures:
        matcher.take(failure, None, partial(_imported_failure, failure))
    return LegacyMatch(tuple(matcher.entries), tuple(matcher.ambiguous), tuple(matcher.unmatched))


class _Matcher:
    """Collects what becomes of each entry. Bounds are taken before failures, so a cell with both has its bound."""

    def __init__(self, cells: tuple[Cell, ...], pipeline_of: Mapping[str, str]) -> None:
        self.entries: list[Imported] = []
        self.ambiguous: list[Ambiguous] = []
        self.unmatched: list[str] = []
        self._taken: dict[str, str] = {}
        self._cells: dict[_Parts, list[Cell]] = {}
        for cell in cells:
            self._cells.setdefault(_parts_of(cell, pipeline_of), []).append(cell)

    def take(
        self, entry: LegacyBound | LegacyFailure, tolerance: float | None, imported: Callable[[str], Imported]
    ) -> None:
        parts = (entry.pipeline, scheduler_class(entry.scheduler), entry.steps, entry.methods)
        fitting = [cell for cell in self._cells.get(parts, []) if _tolerates(cell, tolerance)]
        models = tuple(dict.fromkeys(str(cell.parameters.get("model")) for cell in fitting))
        if not fitting:
            self.unmatched.append(f"{entry.entry}: no cell of the matrix is like it")
        elif len(models) > 1:
            self.ambiguous.append(Ambiguous(entry.entry, models))
        elif len(fitting) > 1:
            labels = ", ".join(cell.label for cell in fitting[:4])
            self.unmatched.append(f"{entry.entry}: it fits {len(fitting)} cells of {models[0]} ({labels})")
        elif earlier := self._taken.get(fitting[0].key):
            self.unmatched.append(f"{entry.entry}: {fitting[0].label} is taken by {earlier}")
        else:
            self._taken[fitting[0].key] = entry.entry
            self.entries.append(imported(fitting[0].key))


_Parts = tuple[str | None, str | None, str, tuple[str, ...]]


def _parts_of(cell: Cell, pipeline_of: Mapping[str, str]) -> _Parts:
    parameters = cell.parameters
    return (
        pipeline_of.get(str(parameters.get("model"))),
        scheduler_class(parameters.get("scheduler")),
        str(parameters.get("steps")),
        tuple(sorted(str(parameters.get("method")).split("+"))),
    )


def _tolerates(cell: Cell, tolerance: float | None) -> bool:
    own = cell.parameters.get("tolerance")
    return tolerance is None or own is None or (_is_number(own) and math.isclose(own, tolerance))


def _imported_bound(bound: LegacyBound, key: str) -> Imported:
    measurement = Measurement(None, None, None, Isolation.UNKNOWN, imported_upper_bound=bound.upper_bound)
    return Imported(key, measurement=measurement)


def _imported_failure(failure: LegacyFailure, key: str) -> Imported:
    return Imported(key, error_kind=failure.kind, message=failure.message, at_unix_s=failure.at_unix_s)


def _bound(key: str, value: Any) -> LegacyBound:
    try:
        if len(key) > _KEY_CHARACTERS:
            raise ValueError
        pipeline, scheduler, steps, tag, tolerance, methods = ast.literal_eval(key)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _malformed(key, "its key is not a tuple of six") from None
    texts = (pipeline, scheduler, steps)
    if not all(isinstance(text, str) and text for text in texts) or tag != LEGACY_TAG or not _is_number(tolerance):
        raise _malformed(key, f"its key is not (pipeline, scheduler, steps, '{LEGACY_TAG}', tolerance, methods)")
    if not isinstance(methods, list) or not methods or not all(isinstance(method, str) for method in methods):
        raise _malformed(key, "its methods are not a list of names")
    upper_bound = value.get("max_speedup") if isinstance(value, Mapping) else None
    if not _is_number(upper_bound) or upper_bound <= 0:
        raise _malformed(key, "it has no positive number as its max_speedup")
    return LegacyBound(key, pipeline, scheduler, steps, tolerance, tuple(sorted(methods)), float(upper_bound))


def _failure(key: str, value: Any) -> LegacyFailure:
    parts = _FAILED_KEY.fullmatch(key)
    if parts is None:
        raise _malformed(key, "its key is not PIPELINE_SCHEDULER_STEPS_METHOD")
    error = value.get("error") if isinstance(value, Mapping) else None
    if not isinstance(error, str) or error not in _ERRORS:
        raise _malformed(key, f"its error is not one of {', '.join(_ERRORS)}")
    message = value.get("message", "")
    if not isinstance(message, str):
        raise _malformed(key, "its message is not text")
    at_unix_s = _instant(key, value.get("timestamp"))
    methods = tuple(sorted(parts["method"].split("+")))
    return LegacyFailure(
        key, parts["pipeline"], parts["scheduler"], parts["steps"], methods, _ERRORS[error], message, at_unix_s
    )


def _instant(key: str, text: Any) -> float | None:
    if text is None:
        return None
    try:
        # Without a zone it is the local time of the box that the script ran on, which is what timestamp() assumes.
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        raise _malformed(key, "its timestamp is not ISO 8601") from None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _malformed(key: str, reason: str) -> LegacyError:
    shown = key if len(key) <= 200 else f"{key[:200]}..."
    return LegacyError(f"the entry {shown!r} is not as the old script wrote it: {reason}")
