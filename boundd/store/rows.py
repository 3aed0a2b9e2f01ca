"""Records to rows and back.

Rules: JSON columns are plain JSON, so a tuple comes back as a list and every name as text; NaN can't be kept; a lone
surrogate in text that a worker wrote becomes '?', because SQLite's text is UTF-8 and one bad message must not stop the
store. What a row can't hold raises before a transaction begins.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, EndReason
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.history import Duration, Observation
from boundd.core.model.memory_evidence import StoredText
from boundd.core.model.outcomes import AttemptError, Measurement, MemoryCause, Outcome, PointRecord, Verdict
from boundd.core.model.quarantines import Quarantine, Subject, SubjectKind
from boundd.core.model.records import (
    LiftQuarantine,
    Record,
    SaveAnswer,
    SaveAttempt,
    SaveCell,
    SaveDuration,
    SaveEnd,
    SaveObservation,
    SavePaused,
    SavePoint,
    SaveQuarantine,
)
from boundd.store import queries, reasons

Values = dict[str, Any]
"""A statement's named parameters."""
Statement = tuple[str, Values]
"""A text of `queries` and its parameters."""

PAUSED = "paused"
"""The name in `meta` of whether new attempts are held back."""

# Which of its processes can't be killed is seen anew after a restart.
_NOT_KEPT = ("unkillable", "witnessed", "unattested")
"""What the next daemon sees for itself, or can't."""
_ATTEMPT_FIELDS = tuple(f.name for f in fields(Attempt) if f.name not in _NOT_KEPT)
_OBSERVATION = itemgetter(*(f.name for f in fields(Observation)))
_DURATION = itemgetter(*(f.name for f in fields(Duration)))
_DECODE = json.JSONDecoder().decode
_ATTEMPT_FLAGS = ("exclusive", "whole_device", "had_company", "foreign_seen")


def statements_of(record: Record) -> tuple[Statement, ...]:
    """The statements that keep a record.

    Raises:
        ValueError: a value is NaN or infinite where JSON must hold it.
        TypeError: a value is not JSON.
    """
    match record:
        case SaveCell(cell):
            return ((queries.SAVE_CELL, cell_values(cell)),)
        case SaveAttempt(attempt):
            return ((queries.SAVE_ATTEMPT, attempt_values(attempt)),)
        case SaveEnd(attempt, verdict, ended_unix_s):
            end = {"attempt_id": attempt.id, "ended_unix_s": ended_unix_s, **verdict_values(verdict)}
            return ((queries.SAVE_ATTEMPT, attempt_values(attempt)), (queries.INSERT_END, end))
        case SavePoint(attempt_id, index, point):
            return ((queries.SAVE_POINT, {"attempt_id": attempt_id, "idx": index, **point_values(point)}),)
        case SaveObservation(seen):
            return ((queries.INSERT_OBSERVATION, {f.name: getattr(seen, f.name) for f in fields(seen)}),)
        case SaveDuration(took):
            return ((queries.INSERT_DURATION, {f.name: getattr(took, f.name) for f in fields(took)}),)
        case SaveQuarantine(quarantine):
            return ((queries.SAVE_QUARANTINE, quarantine_values(quarantine)),)
        case LiftQuarantine(subject):
            return ((queries.DELETE_QUARANTINE, _subject_values(subject)),)
        case SavePaused(paused):
            return ((queries.SAVE_META, {"name": PAUSED, "value": "1" if paused else "0"}),)
        case SaveAnswer():
            values = {f.name: getattr(record, f.name) for f in fields(record)}
            return (
                (queries.DELETE_OLD_ANSWERS, {"oldest_unix_s": record.oldest_unix_s}),
                (queries.SAVE_ANSWER, values),
                (queries.DELETE_SURPLUS_ANSWERS, {"most": record.most}),
            )


def cell_values(record: CellRecord) -> Values:
    """A cell's row. The policy is the config's and the backoff is this daemon's: neither is kept."""
    return {
        "key": record.cell.key,
        "digest": record.cell.digest,
        "label": record.cell.label,
        "parameters": _dump(record.cell.parameters),
        "state": record.state.value,
        "attempts": record.attempts,
        "charged_failures": record.charged_failures,
        "plain_failures": record.plain_failures,
        "free_failures": record.free_failures,
        "memory_level": record.memory_level,
        "alone": record.alone,
        "batch_size": record.batch_size,
        **_error_values(record.error),
        "measurement": _measurement_json(record.measurement),
        "measured_device": record.measured_device,
        "measured_batch_size": record.measured_batch_size,
        "duration_s": record.duration_s,
    }


def cell_of(row: sqlite3.Row) -> CellRecord:
    """A cell's record, with the default policy and no backoff.

    Raises:
        ValueError: the row holds what this version doesn't know.
    """
    parameters = MappingProxyType(_load(row["parameters"]))
    return CellRecord(
        cell=Cell(row["key"], row["digest"], row["label"], parameters),
        policy=CellPolicy(),
        state=CellState(row["state"]),
        attempts=row["attempts"],
        charged_failures=row["charged_failures"],
        plain_failures=row["plain_failures"],
        free_failures=row["free_failures"],
        memory_level=row["memory_level"],
        alone=bool(row["alone"]),
        batch_size=row["batch_size"],
        error=_error_of(row),
        measurement=_measurement_of(row["measurement"]),
        measured_device=row["measured_device"],
        measured_batch_size=row["measured_batch_size"],
        duration_s=row["duration_s"],
    )


def attempt_values(attempt: Attempt) -> Values:
    """An attempt's row: a column a field."""
    values = {name: getattr(attempt, name) for name in _ATTEMPT_FIELDS}
    values["state"] = attempt.state.value
    values["end_reason"] = None if attempt.end_reason is None else attempt.end_reason.value
    return values


def attempt_of(row: sqlite3.Row) -> Attempt:
    """An attempt, as it was last saved.

    Raises:
        ValueError: the row holds what this version doesn't know.
    """
    values: Values = {name: row[name] for name in _ATTEMPT_FIELDS}
    values.update({name: bool(row[name]) for name in _ATTEMPT_FLAGS})
    values["state"] = AttemptState(row["state"])
    values["end_reason"] = None if row["end_reason"] is None else EndReason(row["end_reason"])
    return Attempt(**values)


def verdict_values(verdict: Verdict) -> Values:
    """The columns of an end that say how the attempt went."""
    return {
        "outcome": verdict.outcome.value,
        "measurement": _measurement_json(verdict.measurement),
        **_error_values(verdict.error),
        "exit_status": verdict.exit_status,
        "signal": verdict.signal,
        "wall_s": verdict.wall_s,
        "peak_allocated_bytes": verdict.peak_allocated_bytes,
        "peak_reserved_bytes": verdict.peak_reserved_bytes,
        "host_peak_bytes": verdict.host_peak_bytes,
    }


def verdict_of(row: sqlite3.Row) -> Verdict:
    """The verdict in a row of `ends`.

    Raises:
        ValueError: the row holds what this version doesn't know.
    """
    return Verdict(
        outcome=Outcome(row["outcome"]),
        measurement=_measurement_of(row["measurement"]),
        error=_error_of(row),
        exit_status=row["exit_status"],
        signal=row["signal"],
        wall_s=row["wall_s"],
        peak_allocated_bytes=row["peak_allocated_bytes"],
        peak_reserved_bytes=row["peak_reserved_bytes"],
        host_peak_bytes=row["host_peak_bytes"],
    )


def point_values(point: PointRecord) -> Values:
    """A point's columns, but for whose and which it is."""
    return {
        "parameters": _dump(point.parameters),
        "speedup": point.speedup,
        "score_loss": point.score_loss,
        "isolation": point.isolation.value,
        "details": _dump(point.details),
    }


def point_of(row: sqlite3.Row) -> PointRecord:
    """The point in a row.

    Raises:
        ValueError: the row holds what this version doesn't know.
    """
    return PointRecord(
        parameters=_load(row["parameters"]),
        speedup=row["speedup"],
        score_loss=row["score_loss"],
        isolation=Isolation(row["isolation"]),
        details=_load(row["details"]),
    )


def quarantine_values(quarantine: Quarantine) -> Values:
    """A quarantine's row."""
    cause = {"cause": reasons.dump(quarantine.cause), "since_unix_s": quarantine.since_unix_s}
    return {**_subject_values(quarantine.subject), **cause}


def _subject_values(subject: Subject) -> Values:
    return {"subject_kind": subject.kind.value, "subject": subject.name}


def quarantine_of(row: sqlite3.Row) -> Quarantine:
    """The quarantine in a row.

    Raises:
        ValueError: the row holds what this version doesn't know.
    """
    subject = Subject(SubjectKind(row["subject_kind"]), row["subject"])
    return Quarantine(subject, reasons.cause_of(row["cause"]), row["since_unix_s"])


def observation_of(row: sqlite3.Row) -> Observation:
    """The observation in a row."""
    subject, batch_size, peak_bytes, censored, *others = _OBSERVATION(row)
    return Observation(subject, batch_size, peak_bytes, bool(censored), *others)


def duration_of(row: sqlite3.Row) -> Duration:
    """The duration in a row."""
    return Duration(*_DURATION(row))


def _error_values(error: AttemptError | None) -> Values:
    """The nine columns of an error, all NULL where there is none. What a release before 0005 kept stays as it was."""
    evidence = None if error is None else error.evidence
    kept = evidence.text if isinstance(evidence, StoredText) else None
    return {
        "error_kind": None if error is None else error.kind.value,
        "error_message": None if error is None else _clean(error.message),
        "error_at_unix_s": None if error is None else error.at_unix_s,
        "error_phase": None if error is None or error.phase is None else _clean(error.phase),
        "error_requested_bytes": None if error is None else error.requested_bytes,
        "error_free_bytes": None if error is None else error.free_bytes,
        "error_cause": None if error is None or error.cause is None else error.cause.value,
        "error_why": _clean(kept),
        "error_evidence": None if evidence is None or kept is not None else reasons.dump(evidence),
    }


def _error_of(row: sqlite3.Row) -> AttemptError | None:
    if row["error_kind"] is None:
        return None
    told = StoredText(row["error_why"]) if row["error_why"] else None
    return AttemptError(
        kind=ErrorKind(row["error_kind"]),
        message=row["error_message"],
        at_unix_s=row["error_at_unix_s"],
        phase=row["error_phase"],
        requested_bytes=row["error_requested_bytes"],
        free_bytes=row["error_free_bytes"],
        cause=None if row["error_cause"] is None else MemoryCause(row["error_cause"]),
        evidence=reasons.evidence_of(row["error_evidence"]) if row["error_evidence"] is not None else told,
    )


def _measurement_json(measurement: Measurement | None) -> str | None:
    if measurement is None:
        return None
    return _dump({f.name: getattr(measurement, f.name) for f in fields(measurement)})


def _measurement_of(text: str | None) -> Measurement | None:
    if text is None:
        return None
    values = _load(text)
    values["isolation"] = Isolation(values["isolation"])
    return Measurement(**values)


def _dump(value: Mapping[str, Any]) -> str:
    """JSON in ASCII, so that any text of a worker's can be kept, even a lone surrogate."""
    return json.dumps(dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    """What json doesn't know by itself: a read-only mapping."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _load(text: str) -> dict[str, Any]:
    value = _DECODE(text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, not {text[:80]!r}")
    return value


def _clean(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()
