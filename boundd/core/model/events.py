"""What happened, as values: the only way that anything gets into the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.host import HostReading
from boundd.core.model.outcomes import Measurement, PointRecord, Verdict
from boundd.core.model.quarantines import StuckProcess
from boundd.core.model.state import Rules


@dataclass(frozen=True, slots=True)
class Now:
    """An instant on both clocks: seconds since boot for durations, UTC seconds for records."""

    boot_s: float
    unix_s: float


@dataclass(frozen=True, slots=True)
class ConfigLoaded:
    """The config was read, at the start or by a reload: all of it that a running daemon can take up."""

    cells: tuple[tuple[Cell, CellPolicy], ...]
    """The matrix, in order, and how each cell is to be run."""
    rules: Rules
    settings: object = None
    """What becomes `State.settings`."""


@dataclass(frozen=True, slots=True)
class DevicesRead:
    """One pass over all devices. `observed_bytes`: device UUID to attempt id to bytes held (None: unknown)."""

    readings: tuple[DeviceReading, ...]
    observed_bytes: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    hosts: Mapping[str, HostReading] = field(default_factory=dict)
    """Node to the machine itself, in the same pass; without those that were not read."""
    foreign: frozenset[str] = frozenset()
    """UUIDs of devices on which a process was seen that is not boundd's."""
    unattested: Mapping[str, str] = field(default_factory=dict)
    """UUIDs of devices whose lists of processes say nothing of who is there, to why."""
    witnessed: frozenset[str] = frozenset()
    """Ids of the attempts whose processes were seen in the lists of their device."""
    disk_free_bytes: int | None = None
    """What is free where the state folder is; None where it could not be read, and then it bounds nothing."""


@dataclass(frozen=True, slots=True)
class DevicesUnreadable:
    """A reading failed as a whole: nothing is known of any device, until a later one succeeds."""

    why: str


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The worker of an attempt runs."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class AttemptProgressed:
    """The worker said how far it is."""

    attempt_id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PointMeasured:
    """The worker measured a point; `index` counts the attempt's points from 0."""

    attempt_id: str
    index: int
    point: PointRecord


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """Nothing of the attempt is alive any more; this is how it ended."""

    attempt_id: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AttemptUnkillable:
    """KILL was sent to these processes of the attempt and has not ended them."""

    attempt_id: str
    processes: tuple[StuckProcess, ...]


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """A person wants these cells run again, with all that was charged to them forgotten."""

    keys: tuple[str, ...]
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A person doesn't want these cells run."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """Hold new attempts back; what runs goes on."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """Start new attempts again."""


@dataclass(frozen=True, slots=True)
class CordonRequested:
    """Take a device out of service; what runs there goes on."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class UncordonRequested:
    """Put a device back into service."""

    device: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What an old file said of one cell: an upper bound, or an error."""

    key: str
    measurement: Measurement | None = None
    error_kind: ErrorKind | None = None
    message: str = ""
    at_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class ImportRequested:
    """Take over what an old file knew. A cell that has a measurement of its own keeps it."""

    entries: tuple[Imported, ...]


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """The daemon is to end: start nothing more. With `end_workers`, end them and put their cells back."""

    end_workers: bool


@dataclass(frozen=True, slots=True)
class Wake:
    """Look at the whole state and plan."""


Event = (
    ConfigLoaded
    | DevicesRead
    | DevicesUnreadable
    | AttemptStarted
    | AttemptProgressed
    | PointMeasured
    | AttemptEnded
    | AttemptUnkillable
    | RetryRequested
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | CordonRequested
    | UncordonRequested
    | ImportRequested
    | ShutdownRequested
    | Wake
)
