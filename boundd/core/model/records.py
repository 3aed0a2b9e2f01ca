"""Records: what a step has the store write. The records of one `Commit` are one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.history import Duration, Observation
from boundd.core.model.outcomes import PointRecord, Verdict
from boundd.core.model.quarantines import Quarantine, Subject


@dataclass(frozen=True, slots=True)
class SaveCell:
    """Insert or replace a cell's row, by its key."""

    record: CellRecord


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    """Insert or replace a live attempt's row, by its id. The first one is written before the worker is started."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class SaveEnd:
    """Record the end of an attempt. A second record for the same attempt is an error."""

    attempt: Attempt
    verdict: Verdict
    ended_unix_s: float


@dataclass(frozen=True, slots=True)
class SavePoint:
    """Store a measured point; `index` counts the attempt's points from 0."""

    attempt_id: str
    index: int
    point: PointRecord


@dataclass(frozen=True, slots=True)
class SaveObservation:
    """Store an attempt's memory observation."""

    observation: Observation


@dataclass(frozen=True, slots=True)
class SaveDuration:
    """Store an attempt's duration."""

    duration: Duration


@dataclass(frozen=True, slots=True)
class SaveQuarantine:
    """Store a subject's quarantine, in place of an earlier one."""

    quarantine: Quarantine


@dataclass(frozen=True, slots=True)
class LiftQuarantine:
    """Remove a subject's quarantine."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class SavePaused:
    """Store whether the run is paused."""

    paused: bool


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    """Store the answer to a request with an idempotency key, in the transaction of the change.

    `uid` and `key` identify the request; `request_sha256` tells it from another request with the same key. `body` is
    compressed JSON, or None if it is too long to be stored. Answers from before `oldest_unix_s` are deleted, and all
    but the newest `most`.
    """

    uid: int
    key: str
    request_sha256: str
    at_unix_s: float
    body: bytes | None
    oldest_unix_s: float
    most: int


Record = (
    SaveCell
    | SaveAttempt
    | SaveEnd
    | SavePoint
    | SaveObservation
    | SaveDuration
    | SaveQuarantine
    | LiftQuarantine
    | SavePaused
    | SaveAnswer
)
