"""Why boundd decided what it did, as data: what was short, by how many bytes, on which device, held by whom.

Rules: a reason is a frozen value with a `kind` and its numbers. Decisions are made by types and numbers, never by
words; `wording` alone turns a reason into text. Kinds are names that outside readers see (`boundctl explain --json`)
and that the store keeps: add to them, and don't rename them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import AttemptState, CellState
from boundd.core.model.quarantines import Quarantine, StuckProcess
from boundd.core.model.sources import Source

# Why a device doesn't take a cell


class PlainRefusal(StrEnum):
    """Refusals without numbers."""

    AVOIDED = "avoided"
    """The cell died quickly there, and is tried elsewhere first."""
    FREE_NOW = "free_now"
    """Nothing is in the way any more: the next plan looks again."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The device is out of service."""

    quarantine: Quarantine
    kind: Literal["quarantined"] = "quarantined"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The device can't be used, by its latest reading; `why` is the driver's or the probe's word."""

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
    """A cell that must be alone runs there."""

    label: str
    kind: Literal["taken_alone"] = "taken_alone"


@dataclass(frozen=True, slots=True)
class Full:
    """As many attempts run there as the device takes at a time."""

    attempts: int
    limit: int
    kind: Literal["full"] = "full"


@dataclass(frozen=True, slots=True)
class Resting:
    """Cells died quickly there: it is given none for a while."""

    deaths: int
    left_s: float
    kind: Literal["resting"] = "resting"


@dataclass(frozen=True, slots=True)
class OneAtATime:
    """Cells died quickly there: it gets one at a time, and has yet to be seen to run one."""

    deaths: int
    kind: Literal["one_at_a_time"] = "one_at_a_time"


@dataclass(frozen=True, slots=True)
class NotAlone:
    """The cell must be alone on its device, and others run there.

    `by_rule`: the config, the worker or an earlier attempt says so, whatever the size. Otherwise it is the size:
    `estimate_bytes` (None: nobody knows), of which `most_bytes` is the most that the cell waits for.
    """

    attempts: int
    by_rule: bool
    estimate_bytes: int | None
    most_bytes: int
    source: Source
    kind: Literal["not_alone"] = "not_alone"


@dataclass(frozen=True, slots=True)
class MemoryShort:
    """The device has less headroom than the cell needs: `short_bytes` = needed - headroom, which may be negative."""

    short_bytes: int
    needed_bytes: int
    headroom_bytes: int
    source: Source
    kind: Literal["memory_short"] = "memory_short"


@dataclass(frozen=True, slots=True)
class EmptiedFor:
    """The device is being emptied for another cell. `spare_bytes` of it are for others, and all of it for `wait_s`."""

    label: str
    needed_bytes: int
    spare_bytes: int
    wait_s: float
    source: Source
    kind: Literal["emptied_for"] = "emptied_for"


@dataclass(frozen=True, slots=True)
class HostMemoryShort:
    """The host has too little memory left beside `attempts` that hold some."""

    short_bytes: int
    needed_bytes: int
    left_bytes: int
    attempts: int
    source: Source
    kind: Literal["host_memory_short"] = "host_memory_short"


@dataclass(frozen=True, slots=True)
class CoresShort:
    """The host has too few cores left: `busy` of its `cores` are held by `attempts`."""

    needed: int
    busy: int
    cores: int
    attempts: int
    kind: Literal["cores_short"] = "cores_short"


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Something outside the cells is missing or fails, and what needs it waits until it has passed.

    `left_s` is until the next attempt tries that; None while one does.
    """

    error: ErrorKind
    subject: str
    """What is to be seen to, where it is known."""
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
    """Why a device doesn't take a cell. Bytes are None where the device takes nothing, whatever the cell."""

    device: str
    refusal: Refusal
    needed_bytes: int | None = None
    headroom_bytes: int | None = None
    held_by: tuple[str, ...] = ()
    """Labels of the cells whose reservations are in the way."""
    foreign_bytes: int = 0
    """What processes that are not boundd's hold of the device."""


# Why a cell waits


class PlainWait(StrEnum):
    """Waits without numbers."""

    STOPPING = "stopping"
    PAUSED = "paused"
    NO_DEVICE = "no_device"
    REFUSED = "refused"
    """No device takes it now; each one's refusal says why."""
    ROOM_BY_NOW = "room_by_now"
    """A device has room since the latest plan."""
    NOT_PLANNED = "not_planned"


@dataclass(frozen=True, slots=True)
class DiskShort:
    """The state folder's disk has less free than the config keeps in reserve: nothing is started."""

    free_bytes: int
    reserve_bytes: int
    kind: Literal["disk_short"] = "disk_short"


@dataclass(frozen=True, slots=True)
class Backoff:
    """The cell failed, and is tried again later."""

    left_s: float
    kind: Literal["backoff"] = "backoff"


Wait = PlainWait | DiskShort | Backoff | HeldBack


@dataclass(frozen=True, slots=True)
class Deferral:
    """Why a pending cell was not started by the latest plan: a reason of its own, or one for each device."""

    wait: Wait
    devices: tuple[NoRoom, ...] = ()


# Where a cell stands that doesn't wait


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
    """The error's; a worker's own words are in it."""
    kind: Literal["has_ended"] = "has_ended"


Standing = Wait | Runs | HasEnded


# Why a device was chosen


@dataclass(frozen=True, slots=True)
class PlacementReason:
    """Why an attempt was placed where it is: the device was the best fit for what `source` says it needs."""

    alone: bool
    beside: int
    """Attempts that ran there already."""
    source: Source
    kind: Literal["best_fit"] = "best_fit"


# What follows from a failure


class RetryRule(StrEnum):
    """Which rule decided what becomes of a cell after an attempt that failed (`lifecycle.retry`)."""

    LOST = "lost"
    """It was lost: again at once, and free."""
    PRESSURE = "pressure"
    """Others took its memory: again, alone on its device, and free."""
    MORE_MEMORY = "more_memory"
    """The estimate was too low: again with a larger reservation, and free."""
    OWN_DEVICE = "own_device"
    """The estimate was too low even when it was raised: again with a device to itself, and free."""
    SMALLER_BATCH = "smaller_batch"
    """Too big, alone on its device: again with the next smaller batch."""
    ONCE_MORE = "once_more"
    """A failure that may pass: again after a backoff."""
    NOT_ITS_FAULT = "not_its_fault"
    """The environment failed it: again once that has passed, and free."""
    PATIENCE_SPENT = "patience_spent"
    """Given up: what the environment lacks has not come back in as long as the config waits for it."""
    FREE_SPENT = "free_spent"
    """Given up: its free attempts are used up."""
    SAME_AGAIN = "same_again"
    """Given up: another attempt would end the same."""
    TRIED_TWICE = "tried_twice"
    """Given up: it was tried once more already."""
    MAX_ATTEMPTS = "max_attempts"
    """Given up: it has failed as often as the config allows."""
    LADDER_ENDS = "ladder_ends"
    """Given up: too big, alone on its device, and there is no smaller batch."""


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
"""The rules after which a cell isn't tried again until a person says `retry`."""


@dataclass(frozen=True, slots=True)
class RetryReason:
    """The rule that decided, and its numbers; those that the rule doesn't use are None."""

    kind: RetryRule
    error: ErrorKind
    used: int | None = None
    """Free attempts used so far."""
    limit: int | None = None
    """How many free attempts, or failures (`max_attempts`), there may be."""
    delay_s: float | None = None
    """Until the next attempt, or how long the patience was."""
    reserved_percent: int | None = None
    """What the next attempt reserves, in per cent of what this one ran out of memory with."""
    batch_size: int | None = None
    """The batch of the next attempt."""
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
