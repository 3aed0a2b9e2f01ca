"""Reasons: why boundd decided as it did, as data (what was short, by how many bytes, on which device, held by whom).

A reason is a frozen value with a `kind` and its numbers. Decisions use types and numbers and never text; only
`wording` turns a reason into text. The kinds are visible outside (`boundctl explain --json`) and stored: add new
ones, but don't rename any.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import AttemptState, CellState
from boundd.core.model.quarantines import Quarantine, StuckProcess
from boundd.core.model.sources import Source

# Refusals: why a device doesn't take a cell


class PlainRefusal(StrEnum):
    """Refusals without numbers."""

    AVOIDED = "avoided"
    """The cell died quickly on this device and is tried on another one first."""
    FREE_NOW = "free_now"
    """The device is free by now; the next scheduling pass will consider it."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The device is quarantined."""

    quarantine: Quarantine
    kind: Literal["quarantined"] = "quarantined"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The device can't be used, as its latest reading says; `why` is the driver's or the probe's message."""

    why: str
    kind: Literal["unavailable"] = "unavailable"


@dataclass(frozen=True, slots=True)
class OtherModel:
    """The matrix runs on devices of another model (`mix_models = false`)."""

    name: str
    wanted: str
    kind: Literal["other_model"] = "other_model"


@dataclass(frozen=True, slots=True)
class TakenAlone:
    """A cell that must run alone is on the device."""

    label: str
    kind: Literal["taken_alone"] = "taken_alone"


@dataclass(frozen=True, slots=True)
class Full:
    """The device has reached its limit of attempts at a time."""

    attempts: int
    limit: int
    kind: Literal["full"] = "full"


@dataclass(frozen=True, slots=True)
class Resting:
    """Cells died quickly on the device, so it takes none for a while."""

    deaths: int
    left_s: float
    kind: Literal["resting"] = "resting"


@dataclass(frozen=True, slots=True)
class OneAtATime:
    """Cells died quickly on the device, so it takes one at a time until one has been seen to run."""

    deaths: int
    kind: Literal["one_at_a_time"] = "one_at_a_time"


@dataclass(frozen=True, slots=True)
class NotAlone:
    """The cell must run alone, and other attempts are on the device.

    `by_rule`: the config, the worker or an earlier attempt requires it. Otherwise its size does: `estimate_bytes`
    (None: unknown) is more than a device can share, and the cell waits until at most `most_bytes` are free.
    """

    attempts: int
    by_rule: bool
    estimate_bytes: int | None
    most_bytes: int
    source: Source
    kind: Literal["not_alone"] = "not_alone"


@dataclass(frozen=True, slots=True)
class MemoryShort:
    """The device has less headroom than the cell needs. `short_bytes` = needed - headroom; headroom can be negative."""

    short_bytes: int
    needed_bytes: int
    headroom_bytes: int
    source: Source
    kind: Literal["memory_short"] = "memory_short"


@dataclass(frozen=True, slots=True)
class EmptiedFor:
    """The device is being emptied for another cell. Other cells may use `spare_bytes` of it for any time
    (backfilling), and all free memory if they end within `wait_s`."""

    label: str
    needed_bytes: int
    spare_bytes: int
    wait_s: float
    source: Source
    kind: Literal["emptied_for"] = "emptied_for"


@dataclass(frozen=True, slots=True)
class HostMemoryShort:
    """The host has too little memory left beside the `attempts` that hold some."""

    short_bytes: int
    needed_bytes: int
    left_bytes: int
    attempts: int
    source: Source
    kind: Literal["host_memory_short"] = "host_memory_short"


@dataclass(frozen=True, slots=True)
class CoresShort:
    """The host has too few cores left: `attempts` hold `busy` of its `cores`."""

    needed: int
    busy: int
    cores: int
    attempts: int
    kind: Literal["cores_short"] = "cores_short"


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A problem of the environment holds the cell or device back.

    `left_s` is the time until the next probe; None while one is running.
    """

    error: ErrorKind
    subject: str
    """What needs attention, if known."""
    message: str
    """The latest failure, in its own words."""
    left_s: float | None
    kind: Literal["held_back"] = "held_back"


HostRefusal = HostMemoryShort | CoresShort
Refusal = (
    PlainRefusal
    | Quarantined
    | Unreadable
    | OtherModel
    | TakenAlone
    | Full
    | Resting
    | OneAtATime
    | NotAlone
    | MemoryShort
    | EmptiedFor
    | HeldBack
    | HostRefusal
)


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why a device doesn't take a cell. The bytes are None if the device takes no cell at all."""

    device: str
    refusal: Refusal
    needed_bytes: int | None = None
    headroom_bytes: int | None = None
    held_by: tuple[str, ...] = ()
    """Labels of the cells that hold reservations on the device."""
    foreign_bytes: int = 0
    """Device memory held by foreign processes."""


# Waits: why a cell waits


class PlainWait(StrEnum):
    """Waits without numbers."""

    STOPPING = "stopping"
    PAUSED = "paused"
    NO_DEVICE = "no_device"
    REFUSED = "refused"
    """No device takes the cell now; the refusals say why."""
    ROOM_BY_NOW = "room_by_now"
    """A device has had room since the latest scheduling pass."""
    NOT_PLANNED = "not_planned"


@dataclass(frozen=True, slots=True)
class DiskShort:
    """The state folder's file system has less free space than `daemon.disk_reserve`, so nothing is started."""

    free_bytes: int
    reserve_bytes: int
    kind: Literal["disk_short"] = "disk_short"


@dataclass(frozen=True, slots=True)
class Backoff:
    """The cell failed and is retried later."""

    left_s: float
    kind: Literal["backoff"] = "backoff"


Wait = PlainWait | DiskShort | Backoff | HeldBack


@dataclass(frozen=True, slots=True)
class Deferral:
    """Why the latest scheduling pass did not start a pending cell: a reason of its own, or a refusal by each device."""

    wait: Wait
    devices: tuple[NoRoom, ...] = ()


# The standing of a cell that doesn't wait


@dataclass(frozen=True, slots=True)
class Runs:
    """An attempt of the cell is live."""

    attempt: int
    state: AttemptState
    device: str
    elapsed_s: float
    reservation_bytes: int
    unkillable: tuple[StuckProcess, ...]
    kind: Literal["runs"] = "runs"


@dataclass(frozen=True, slots=True)
class HasEnded:
    """The cell has ended."""

    state: CellState
    attempts: int
    error: ErrorKind | None
    message: str
    """The error's message, which may contain the worker's own text."""
    kind: Literal["has_ended"] = "has_ended"


Standing = Wait | Runs | HasEnded


# Why a device was chosen


@dataclass(frozen=True, slots=True)
class PlacementReason:
    """Why an attempt was placed on its device: it was the best fit for the need that `source` gives."""

    alone: bool
    beside: int
    """Attempts that were already on the device."""
    source: Source
    kind: Literal["best_fit"] = "best_fit"


# Retries: what follows from a failure


class RetryRule(StrEnum):
    """The rule that decided what follows from a failed attempt (`lifecycle.retry`)."""

    LOST = "lost"
    """The attempt was lost: retried at once, not charged."""
    PRESSURE = "pressure"
    """Others took its memory: retried alone on its device, not charged."""
    MORE_MEMORY = "more_memory"
    """The estimate was too low: retried with a larger reservation, not charged."""
    OWN_DEVICE = "own_device"
    """The estimate was still too low after it was raised: retried alone on a device, not charged."""
    SMALLER_BATCH = "smaller_batch"
    """Too big for its device when alone: retried with the next smaller batch."""
    ONCE_MORE = "once_more"
    """A failure that may be transient: retried after a backoff."""
    NOT_ITS_FAULT = "not_its_fault"
    """A failure of the environment: retried once that is over, not charged."""
    PATIENCE_SPENT = "patience_spent"
    """Given up: the problem of the environment has lasted for longer than `retry.patience`."""
    FREE_SPENT = "free_spent"
    """Given up: the limit of uncharged attempts is reached."""
    SAME_AGAIN = "same_again"
    """Given up: another attempt would fail the same way."""
    TRIED_TWICE = "tried_twice"
    """Given up: it was already retried once."""
    MAX_ATTEMPTS = "max_attempts"
    """Given up: `max_attempts` charged failures."""
    LADDER_ENDS = "ladder_ends"
    """Given up: too big for its device when alone, and the batch ladder has no smaller batch."""


GIVES_UP = frozenset(
    {
        RetryRule.PATIENCE_SPENT,
        RetryRule.FREE_SPENT,
        RetryRule.SAME_AGAIN,
        RetryRule.TRIED_TWICE,
        RetryRule.MAX_ATTEMPTS,
        RetryRule.LADDER_ENDS,
    }
)
"""The rules that give a cell up until an operator retries it."""


@dataclass(frozen=True, slots=True)
class RetryReason:
    """The rule and its numbers; a number that the rule doesn't use is None."""

    kind: RetryRule
    error: ErrorKind
    used: int | None = None
    """Uncharged attempts so far."""
    limit: int | None = None
    """The limit of uncharged attempts, or of charged failures (`max_attempts`)."""
    delay_s: float | None = None
    """Time until the next attempt; for PATIENCE_SPENT, `retry.patience`."""
    reserved_percent: int | None = None
    """The next attempt's reservation, in per cent of the one that was too small."""
    batch_size: int | None = None
    """The batch size of the next attempt."""
    failed_batch_size: int | None = None


Reason = Refusal | Standing | PlacementReason | RetryReason


def as_data(reason: Any) -> dict[str, Any]:
    """A reason as plain JSON values: its `kind` and its numbers."""
    if isinstance(reason, StrEnum):
        return {"kind": reason.value}
    return {name: _plain(value) for name, value in asdict(reason).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value
