"""What a step asks the store to keep. All records of one `Commit` are kept in one transaction, or none."""

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
    """Insert or replace a live attempt's row, by its id. The first save of an attempt is its intent."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class SaveEnd:
    """Record how an attempt ended. A second one for the same attempt is an error: one result an attempt."""

    attempt: Attempt
    verdict: Verdict
    ended_unix_s: float


@dataclass(frozen=True, slots=True)
class SavePoint:
    """Keep a measured point; `index` counts the attempt's points from 0."""

    attempt_id: str
    index: int
    point: PointRecord


@dataclass(frozen=True, slots=True)
class SaveObservation:
    """Keep what an attempt's memory was seen to be."""

    observation: Observation


@dataclass(frozen=True, slots=True)
class SaveDuration:
    """Keep how long an attempt took."""

    duration: Duration


@dataclass(frozen=True, slots=True)
class SaveQuarantine:
    """Keep that a subject is held back, and why, instead of what was kept of it before."""

    quarantine: Quarantine


@dataclass(frozen=True, slots=True)
class LiftQuarantine:
    """Keep that a subject is not held back any more."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class SavePaused:
    """Keep whether new attempts are held back."""

    paused: bool


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    """Keep what a person's request was answered with, beside what it changed, for when they ask again.

    `uid` and `key` name the request, `request_sha256` tells it from another one with the same key. `body` is compressed
    JSON, or None where it is too long to be kept. Answers from before `oldest_unix_s` are forgotten, and all but the
    newest `most`.
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
