"""Events: the only way to change the state."""

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
    """An instant on both clocks: seconds since boot for durations, and UTC seconds for records."""

    boot_s: float
    unix_s: float


@dataclass(frozen=True, slots=True)
class ConfigLoaded:
    """The config was loaded or reloaded. Holds everything that a running daemon can take from it."""

    cells: tuple[tuple[Cell, CellPolicy], ...]
    """The cells in the order of the matrix, each with its policy."""
    rules: Rules
    settings: object = None
    """The new `State.settings`."""


@dataclass(frozen=True, slots=True)
class DevicesRead:
    """One reading of all devices. `observed_bytes`: device UUID to attempt id to bytes held (None: unknown)."""

    readings: tuple[DeviceReading, ...]
    observed_bytes: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    hosts: Mapping[str, HostReading] = field(default_factory=dict)
    """Node to its host memory and cores in the same pass, without nodes that were not read."""
    foreign: frozenset[str] = frozenset()
    """UUIDs of devices on which a foreign process was seen."""
    unattested: Mapping[str, str] = field(default_factory=dict)
    """UUIDs of devices whose process lists don't tell who uses the device, with the reason."""
    witnessed: frozenset[str] = frozenset()
    """Ids of the attempts whose processes the driver listed on their device."""
    disk_free_bytes: int | None = None
    """Free bytes on the state folder's file system; None if unknown, and then nothing is held back for it."""


@dataclass(frozen=True, slots=True)
class DevicesUnreadable:
    """A reading failed as a whole. All devices are unavailable until one succeeds."""

    why: str


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An attempt's worker is running."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class AttemptProgressed:
    """The worker reported its progress."""

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
    """All processes of the attempt are gone; the verdict says how it ended."""

    attempt_id: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AttemptUnkillable:
    """These processes of the attempt survived SIGKILL."""

    attempt_id: str
    processes: tuple[StuckProcess, ...]


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """An operator retries these cells. All failures charged to them are forgotten."""

    keys: tuple[str, ...]
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """An operator cancels these cells."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """Start no new attempts. Running attempts continue."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """Start new attempts again."""


@dataclass(frozen=True, slots=True)
class CordonRequested:
    """Cordon a device: it takes no new cells. Running attempts continue."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class UncordonRequested:
    """Uncordon a device."""

    device: str


@dataclass(frozen=True, slots=True)
class Imported:
    """An old file's entry for one cell: an upper bound or an error."""

    key: str
    measurement: Measurement | None = None
    error_kind: ErrorKind | None = None
    message: str = ""
    at_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class ImportRequested:
    """Import the entries of an old file. A cell that was measured here keeps its measurement."""

    entries: tuple[Imported, ...]


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """The daemon shuts down and starts nothing more. With `end_workers`, it ends the workers and puts their cells
    back."""

    end_workers: bool


@dataclass(frozen=True, slots=True)
class Wake:
    """Run a scheduling pass."""


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
