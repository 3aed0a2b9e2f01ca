"""Exports: what the store knows, as files for other tools. docs/export.md describes the formats.

Rules: an export is never read back as state. Only the format `json` says everything; each of the others leaves cells
out, and returns which and why, because a cell that is silently missing looks like one that was never asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from boundd.api.constants import EXPORT_FORMATS, ExportFormat
from boundd.catalogue.names import UnknownNameError
from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.catalogue.schedulers import resolve_scheduler
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.outcomes import AttemptError
from boundd.results.bounds import Bound, BoundRules, bound_of
from boundd.text import encodable, timestamp

EXPORT_FORMAT = "boundd/1"
"""The mark of the format `json`, and its version."""

LEGACY_TAG = "upbound_speedup"
LEGACY_MESSAGE_CHARACTERS = 1_000
_FAILED = (CellState.FAILED, CellState.OUT_OF_MEMORY, CellState.TIMED_OUT, CellState.LOST)
_LEGACY_ERRORS = {
    ErrorKind.OUT_OF_MEMORY: "cuda_oom",
    ErrorKind.TIMEOUT: "timeout",
    ErrorKind.LOST: "unknown_error",
    ErrorKind.CANCELLED: "unknown_error",
}
_NO_CELLS = "[]\n}\n"
"""How a document without cells ends."""
_COLUMNS = (
    *("label", "digest", "state", "max_speedup", "max_speedup_within_tolerance", "upper_bound", "upper_bound_of"),
    *("best_speedup", "best_score_loss", "best_parameters", "isolation", "stale", "batch_size", "device", "attempts"),
    *("error_type", "error_message", "error_at"),
)


@dataclass(frozen=True, slots=True)
class ExportCell:
    """A cell, and what its old key needs: the classes of its pipeline and scheduler, and its methods."""

    record: CellRecord
    pipeline: str | None = None
    scheduler: str | None = None
    methods: tuple[str, ...] = ()
    stale: bool = False

    @classmethod
    def of(cls, record: CellRecord, pipeline_of: Mapping[str, str], *, stale: bool = False) -> ExportCell:
        """The cell with its classes looked up: `pipeline_of` maps models to pipeline classes."""
        parameters = record.cell.parameters
        method = parameters.get("method")
        methods = tuple(sorted(method.split("+"))) if isinstance(method, str) and method else ()
        return cls(
            record, pipeline_of.get(str(parameters.get("model"))), scheduler_class(parameters.get("scheduler")),
            methods, stale,
        )  # fmt: skip

    @property
    def attempts(self) -> int:
        """How many attempts were made."""
        return self.record.attempts

    def legacy_key(self) -> str | None:
        """The key of the old file's results; None where the cell lacks a part of it."""
        parameters = self.record.cell.parameters
        if not self._has_classes() or "tolerance" not in parameters:
            return None
        parts = (self.pipeline, self.scheduler, str(parameters["steps"]), LEGACY_TAG, parameters["tolerance"])
        return str((*parts, list(self.methods)))

    def failed_key(self) -> str | None:
        """The key of the old file's failures; None where the cell lacks a part of it."""
        if not self._has_classes():
            return None
        return f"{self.pipeline}_{self.scheduler}_{self.record.cell.parameters['steps']}_{'+'.join(self.methods)}"

    def _has_classes(self) -> bool:
        return bool(self.pipeline and self.scheduler and self.methods and "steps" in self.record.cell.parameters)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell that a format could not say, and why not."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """An export's text, and the cells that are not in it."""

    text: str
    left_out: tuple[LeftOut, ...] = ()


def scheduler_class(name: object) -> str | None:
    """The class that a scheduler's name means; a name that isn't known is taken for a class of somebody's own."""
    if not isinstance(name, str):
        return None
    try:
        return resolve_scheduler(name)
    except UnknownNameError:
        return name


class CellTexts:
    """Each cell's text in the format `json`, kept until the cell changes.

    The export is written after every result: without this, each would cost as much as the whole matrix.
    """

    def __init__(self, rules: BoundRules) -> None:
        self._rules = rules
        self._kept: dict[str, tuple[ExportCell, str]] = {}

    def of(self, cell: ExportCell) -> str:
        """The cell as JSON, indented as in the document."""
        key = cell.record.cell.key
        before, text = self._kept.get(key, (None, ""))
        # A record is a value that is replaced and never changed: the same object says the same.
        if before is None or before.record is not cell.record or before != cell:
            text = _indented(_clean(_cell_document(cell, self._rules))).replace("\n", "\n    ")
            self._kept[key] = (cell, text)
        return text


def render_export(
    format: ExportFormat,  # noqa: A002 - the option's name
    cells: Iterable[ExportCell],
    *,
    rules: BoundRules,
    now_unix_s: float,
    version: str,
    texts: CellTexts | None = None,
    owner: str = "",
) -> Rendered:
    """The cells, in the order of the matrix, in one of the formats.

    `version` is boundd's own. `owner` names the state folder that the file is of, where it is one. `texts` are those
    of an earlier export of the same rules; they are brought up to date.

    Raises:
        ValueError: there is no such format.
    """
    known = tuple(cells)
    if format == "json":
        return _render_json(known, rules, now_unix_s, version, texts or CellTexts(rules), owner)
    if format == "legacy":
        return _render_legacy(known, rules)
    if format == "search-params":
        return _render_search_params(known, rules)
    if format == "csv":
        return _render_csv(known, rules)
    raise ValueError(f"unknown export format {format!r}; known: {', '.join(EXPORT_FORMATS)}")


def _render_json(
    cells: tuple[ExportCell, ...], rules: BoundRules, now_unix_s: float, version: str, texts: CellTexts, owner: str
) -> Rendered:
    head = {
        "format": EXPORT_FORMAT,
        "generated_at": timestamp(now_unix_s),
        "boundd_version": version,
        **({"owner": owner} if owner else {}),
        "safety_factor": rules.safety_factor,
        "accept_unknown": rules.accept_unknown,
        "cells": [],
    }
    if not cells:
        return Rendered(_dump(head))
    separator = ",\n    "
    body = f"[\n    {separator.join(map(texts.of, cells))}\n  ]"
    return Rendered(f"{_dump(head).removesuffix(_NO_CELLS)}{body}\n}}\n")


def _cell_document(cell: ExportCell, rules: BoundRules) -> dict[str, Any]:
    record = cell.record
    measurement = record.measurement
    bound = bound_of(measurement, rules)
    batch_size = record.wanted_batch_size if measurement is None else record.measured_batch_size
    return {
        "key": dict(record.cell.parameters),
        "digest": record.cell.digest,
        "label": record.cell.label,
        "state": record.state.value,
        "max_speedup": measurement.max_speedup if measurement else None,
        "max_speedup_within_tolerance": measurement.max_speedup_within_tolerance if measurement else None,
        "upper_bound": bound.upper_bound,
        "upper_bound_of": bound.upper_bound_of,
        "stale": cell.stale,
        "best": _best(cell),
        "isolation": measurement.isolation.value if measurement else None,
        "batch_size": batch_size,
        "device": record.measured_device or None,
        "attempts": cell.attempts,
        "duration_s": record.duration_s,
        "pipeline": cell.pipeline,
        "scheduler": cell.scheduler,
        "methods": list(cell.methods),
        "details": dict(measurement.details) if measurement else {},
        "error": _error(record.error),
    }


def _best(cell: ExportCell) -> dict[str, Any] | None:
    measurement = cell.record.measurement
    if measurement is None or measurement.best is None:
        return None
    return {name: measurement.best.get(name) for name in ("parameters", "speedup", "score_loss")}


def _error(error: AttemptError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"type": error.kind.value, "message": error.message, "at": timestamp(error.at_unix_s)}


class _OldKeys:
    """Who owns each old key: the first cell of the matrix that has it, whatever has become of that cell.

    Were it the first with a result, the same key would mean one model today and another tomorrow.
    """

    def __init__(self, cells: tuple[ExportCell, ...]) -> None:
        self._owners: dict[str, ExportCell] = {}
        for cell in cells:
            for key in (cell.legacy_key(), cell.failed_key()):
                if key is not None:
                    self._owners.setdefault(key, cell)

    def why_not(self, cell: ExportCell, key: str | None) -> str | None:
        """Why the cell can't be said under its old key; None where it can."""
        if key is None:
            return "it lacks a part of the old key (pipeline and scheduler class, steps, methods, tolerance)"
        owner = self._owners[key]
        if owner is cell:
            return None
        return f"the old key can't tell it from {owner.record.cell.label}: {key}"


def _render_legacy(cells: tuple[ExportCell, ...], rules: BoundRules) -> Rendered:
    keys = _OldKeys(cells)
    entries: dict[str, Any] = {}
    failed: dict[str, Any] = {}
    left_out: list[LeftOut] = []
    for cell in cells:
        record = cell.record
        bound = bound_of(record.measurement, rules)
        says_failure = bound.upper_bound is None and record.error is not None and record.state in _FAILED
        key = cell.failed_key() if says_failure else cell.legacy_key()
        reason = keys.why_not(cell, key) or (None if says_failure else _why_no_bound(record, bound))
        if reason is not None:
            left_out.append(LeftOut(record.cell.label, reason))
        elif key is not None and says_failure and record.error is not None:
            failed[key] = {
                "error": _LEGACY_ERRORS.get(record.error.kind, "subprocess_error"),
                "message": record.error.message[:LEGACY_MESSAGE_CHARACTERS],
                "timestamp": timestamp(record.error.at_unix_s),
            }
        elif key is not None and bound.upper_bound is not None:
            entries[key] = {"max_speedup": round(bound.upper_bound, 2)} | _unattested(bound)
    return Rendered(_dump({**entries, "failed_configs": failed}), tuple(left_out))


def _unattested(bound: Bound) -> dict[str, str]:
    """What an entry of an old format says besides, where nobody attests that the device was its own."""
    return {"isolation": Isolation.UNKNOWN.value} if bound.of_unknown_isolation else {}


def _why_no_bound(record: CellRecord, bound: Bound) -> str | None:
    """Why a cell that was measured has no bound; None where it has one, or has simply not come to its end."""
    measurement = record.measurement
    if bound.upper_bound is not None or measurement is None:
        return None
    if measurement.isolation is not Isolation.EXCLUSIVE:
        return f"no bound: its isolation is {measurement.isolation.value}"
    return "no bound: no point was within the tolerance"


def _render_search_params(cells: tuple[ExportCell, ...], rules: BoundRules) -> Rendered:
    keys = _OldKeys(cells)
    entries: dict[str, Any] = {}
    left_out: list[LeftOut] = []
    for cell in cells:
        key = cell.legacy_key()
        bound = bound_of(cell.record.measurement, rules)
        reason = keys.why_not(cell, key) or _why_no_parameters(cell.record, bound)
        if reason is not None:
            left_out.append(LeftOut(cell.record.cell.label, reason))
        elif key is not None and cell.record.measurement is not None:
            best = cell.record.measurement.best or {}
            figures = {"speedup": best.get("speedup"), "score_loss": best.get("score_loss")}
            entries[key] = {**best.get("parameters", {}), **figures, **_unattested(bound)}
    return Rendered(_dump(entries), tuple(left_out))


def _why_no_parameters(record: CellRecord, bound: Bound) -> str | None:
    """Why a measured cell has no parameters to recommend; None where it has, or was not measured."""
    measurement = record.measurement
    if measurement is None:
        return None
    if measurement.imported_upper_bound is not None:
        return "no parameters: it was imported, and the old file kept none"
    if measurement.max_speedup_within_tolerance is None or not measurement.best:
        return "no parameters: nothing was scored and found within the tolerance"
    return _why_no_bound(record, bound)


def _render_csv(cells: tuple[ExportCell, ...], rules: BoundRules) -> Rendered:
    """One row a cell. The parameters come first, each a column named `key.NAME`."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.record.cell.parameters))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([encodable(text) for text in (*(f"key.{name}" for name in names), *_COLUMNS)])
    for cell in cells:
        document = _cell_document(cell, rules)
        best, error = document["best"] or {}, document["error"] or {}
        parameters = best.get("parameters")
        flat = {
            **document,
            "best_speedup": best.get("speedup"),
            "best_score_loss": best.get("score_loss"),
            "best_parameters": None if parameters is None else json.dumps(parameters, sort_keys=True),
            **{f"error_{name}": error.get(name) for name in ("type", "message", "at")},
        }
        values = [*(document["key"].get(name) for name in names), *(flat[column] for column in _COLUMNS)]
        writer.writerow([_csv_text(value) for value in values])
    return Rendered(stream.getvalue())


def _csv_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        # Some readers of CSV end at a NUL.
        return encodable(value).replace("\0", "\ufffd")
    return json.dumps(value, sort_keys=True)


def _dump(document: Mapping[str, Any]) -> str:
    return _indented(_clean(document)) + "\n"


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False)


def _clean(value: Any) -> Any:
    """JSON that every reader takes: no lone surrogates."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(name)): _clean(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
