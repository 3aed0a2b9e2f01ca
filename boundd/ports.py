"""The Protocols between the core and the shell, and the errors that cross them.

Who implements what: `devices` a DeviceProbe, `launch` a Launcher, `store` a Store, `telemetry` an Observer. `service`
sees these and nothing behind them; `main` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from anyio.streams.memory import MemoryObjectReceiveStream

from boundd.core.lifecycle.loop import Keep as Keep
from boundd.core.lifecycle.loop import keep_nothing as keep_nothing
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Note
from boundd.core.model.events import Event, Now
from boundd.core.model.history import Duration, Observation
from boundd.core.model.outcomes import PointRecord, Verdict
from boundd.core.model.quarantines import Quarantine
from boundd.core.model.records import Record
from boundd.core.model.state import State


class ConfigError(Exception):
    """The operator's: one or more errors in a config, each with its key path. Exit code 2."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


class DeviceError(Exception):
    """The environment's: no device can be worked on. Exit code 6."""


class StoreError(Exception):
    """The environment's: the store can't be used (corrupt, foreign, newer). Exit code 5. The file is untouched."""


class StoreBusyError(Exception):
    """The environment's, and passing: this commit did not happen (disk full, I/O error), a later one may."""


class AlreadyRunningError(Exception):
    """The operator's: another daemon holds this state; the message names its pid. Exit code 4."""


class LaunchError(Exception):
    """The environment's: a worker could not be started; the message says what was tried and why not.

    `transient`: it was the disk (full, failing), so that the same attempt may be started later. `errno`: the system's
    error number; None where there is none, and then the command can't be executed anywhere.
    """

    def __init__(self, message: str, *, transient: bool = False, errno: int | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.errno = errno


class InvariantError(AssertionError):
    """Ours: something that can't happen did."""


class Clock(Protocol):
    """Both clocks."""

    def now(self) -> Now:
        """This instant."""


class DeviceProbe(Protocol):
    """Reads every device. A device that can't be read is a reading that says why, never an exception."""

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """One pass over all devices, in index order; with `processes`, their process lists too.

        Raises:
            DeviceError: the backend as a whole is gone (no driver, no device).
        """

    async def aclose(self) -> None:
        """End the probe and its child, if it has one."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One attempt, as the core wants it run. Where its files are is the launcher's: it adds what a worker is told of
    them (`BOUNDD_RESULTS`, `BOUNDD_LEASE`, `BOUNDD_EARLIER_RESULTS`) to `env`.
    """

    attempt_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    timeout_s: float
    grace_s: float
    fetch_timeout_s: float = 0.0
    """For how long the deadline may stand still while it fetches what it needs."""
    log_limit_bytes: int = 16 * 1024**2
    kept_lines: tuple[Mapping[str, Any], ...] = ()
    """What is kept of an output that outgrows its log, kind by kind: lines that hold one of the texts in `needles`, or
    in which the regular expression `pattern` finds something, and so many lines after each as `following` says."""
    memory_max_bytes: int = 0
    """Of the host's memory, for all of its processes; 0 for no limit."""
    pids_max: int = 0
    """Processes and threads; 0 for no limit."""
    device: str = ""
    """The UUID of the device whose lease the worker takes; empty for none."""
    earlier_attempts: tuple[str, ...] = ()
    """Ids of the cell's attempts before this one, the oldest first: a worker reads back the points they measured."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How the worker's process ended, as its shim saw it, or `lost` with a reason where no shim lived to tell."""

    exit_status: int | None = None
    signal: int | None = None
    timed_out: bool = False
    ended_on_request: bool = False
    start_error: str = ""
    """Set where the worker could not be executed at all."""
    start_errno: int | None = None
    """The system's error number for that; None where there is none."""
    start_about: str = ""
    """What could not be had: `program`, `folder` (the worker's working directory), or something else."""
    start_subject: str = ""
    """Its path."""
    wall_s: float | None = None
    lost: str = ""
    host_peak_bytes: int | None = None
    """The most of the host's memory that all of its processes held together; None where nobody counted."""
    host_memory: str = ""
    """Set where the kernel ended some of it because the host's memory, or its own limit of that, was used up."""
    host_memory_own: bool = False
    """It was its own limit."""
    results_bytes: int | None = None
    """How long the results file was when the worker ended: what was appended later is not its word. None: not known."""
    lease_waited_s: float | None = None
    """About how long it waited for its device's lease, which put its deadline off; None where it had none."""
    fetched_s: float | None = None
    """About how long it fetched what it needs, which put its deadline off too; None where that isn't counted."""
    output_lost: bool = False
    """Whether the disk never took the last of what it said, in which its result may have been."""


@dataclass(frozen=True, slots=True)
class UnkillableProcess:
    """A process that has been sent KILL and lives."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since boot: with the pid, its identity."""
    name: str = field(default="", compare=False)
    state: str = field(default="", compare=False)
    """As in proc_pid_stat(5): D waits in the kernel."""
    waits_in: str = field(default="", compare=False)
    """The function of the kernel that it waits in; empty where the kernel doesn't say."""


class Launcher(Protocol):
    """Starts attempts, finds them again after a restart, ends them."""

    async def launch(self, spec: LaunchSpec) -> None:
        """Start the attempt's shim; returns once it has taken over.

        Raises:
            LaunchError: nothing was started.
        """

    async def wait(self, attempt_id: str) -> ProcessEnd:
        """How it ended, once nothing of the attempt is alive; for attempts of this daemon or of an earlier one."""

    def is_alive(self, attempt_id: str) -> bool:
        """Whether anything of the attempt lives, whoever started it."""

    async def end(self, attempt_id: str) -> None:
        """Ask the shim for TERM, grace, KILL on the whole tree. Returns at once; `wait` tells when it is over."""

    def why_not_endable(self, attempt_id: str) -> str:
        """Why a live attempt can only be waited for, and not asked to end; empty where it isn't so."""

    def unkillable(self, attempt_id: str) -> frozenset[UnkillableProcess]:
        """Its processes that were sent KILL and are there all the same, as of now: most of them will be gone soon."""

    def pids(self, attempt_id: str) -> frozenset[int]:
        """The host pids of the attempt's processes, as far as they can be told."""

    def pids_of(self, attempt_ids: Iterable[str]) -> Mapping[str, frozenset[int]]:
        """The same of many attempts, in one look at the machine's processes."""

    async def read_results(
        self, attempt_id: str, offset: int, max_bytes: int, *, only_while_alive: bool = False
    ) -> bytes:
        """Some of what the worker has appended to its results, from `offset` on; empty where there is no more (yet).

        With `only_while_alive`, empty too where the worker's own process had ended by the time of the reading: what it
        left behind may go on writing.

        Raises:
            NotAFileError: something else is in the place of the results.
            OSError: they can't be read now.
        """

    async def read_log(self, attempt_id: str, offset: int, max_bytes: int) -> bytes:
        """Some of what the worker printed, from `offset` on; empty where there is no more (yet).

        Raises:
            NotAFileError: something else is in the place of the log.
            OSError: it can't be read now.
        """

    async def log_size_bytes(self, attempt_id: str) -> int | None:
        """How long the log is; None where there is none (any more).

        Raises:
            NotAFileError: something else is in the place of the log.
            OSError: it can't be told now.
        """


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store knew when the daemon started. Cells of the store that no config names are there too."""

    cells: tuple[CellRecord, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    """Attempts without an end."""
    observations: tuple[Observation, ...] = ()
    """Of each subject, and durations of each model, the newest `boundd.core.model.history.NEWEST_KEPT`."""
    durations: tuple[Duration, ...] = ()
    quarantines: tuple[Quarantine, ...] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """An attempt's row, for `show`: how it went. `verdict` is None while it is live."""

    attempt: Attempt
    verdict: Verdict | None
    ended_unix_s: float | None
    points: tuple[PointRecord, ...] = ()
    """What it measured, in order."""


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """A whole and checked copy of the store, in a file without a name: closed, it is gone. Whoever has it closes it."""

    file: BinaryIO
    size_bytes: int
    sha256: str
    """Of the file's content, in hex."""
    commits: int
    """How many commits are in it."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a request with an idempotency key was answered with; `body` is None where it was too long to be kept."""

    request_sha256: str
    at_unix_s: float
    body: bytes | None


class Store(Protocol):
    """Keeps the state. One writer."""

    async def load(self) -> Snapshot:
        """Everything that a starting daemon needs."""

    async def commit(self, records: Sequence[Record]) -> None:
        """Keep all of them, durably, in one transaction that no cancellation splits.

        Raises:
            StoreBusyError: nothing was kept; try again later.
        """

    async def attempts_of(
        self, key: str, *, limit: int | None = None, before: int | None = None
    ) -> tuple[EndedAttempt, ...]:
        """A cell's attempts with their points, oldest first: the latest `limit` of those numbered below `before`."""

    async def answer_of(self, uid: int, key: str, oldest_unix_s: float) -> KeptAnswer | None:
        """What was kept by a `SaveAnswer` of this user and key, if not before `oldest_unix_s`."""

    async def remember(self, name: str, value: str) -> None:
        """Keep a small fact about this store (such as the digest of the last export)."""

    async def recall(self, name: str) -> str | None:
        """A fact kept by `remember`."""

    async def back_up(self) -> StoreCopy:
        """A copy of the store as it is now, made while it is used.

        Raises:
            StoreBusyError: another is being made, or there is no room.
            StoreError: the store is damaged.
        """

    async def aclose(self) -> None:
        """Close the database; safe to call twice."""


class Observer(Protocol):
    """Hears of everything worth telling. Never blocks and never raises."""

    def note(self, note: Note, now: Now) -> None:
        """One thing that happened."""


class Service(Protocol):
    """What the control API sees of the daemon."""

    @property
    def state(self) -> State:
        """The committed state, as of now."""

    @property
    def store(self) -> Store:
        """For what the state doesn't hold: the history of a cell and its points."""

    @property
    def launcher(self) -> Launcher:
        """For the logs of an attempt."""

    @property
    def clock(self) -> Clock:
        """Both clocks."""

    @property
    def started_unix_s(self) -> float:
        """When this daemon started, UTC."""

    @property
    def store_problem(self) -> str:
        """Why nothing can be stored, or nothing is started for want of disk; empty where all is well."""

    async def submit(self, event: Event, keep: Keep = keep_nothing) -> None:
        """Apply an event; returns once it is committed and what follows from it is planned.

        What `keep` makes of the state that the event is applied to is kept in the transaction of the event, or, where
        that changes nothing, in one of its own. It is asked anew for every try.

        Raises:
            StoreBusyError: it could not be stored, so it did not happen.
        """

    def request_stop(self, *, end_workers: bool) -> None:
        """Begin to shut down; with `end_workers`, end them and put their cells back, else leave them running."""

    async def reload(self) -> str:
        """Read the config anew, all or nothing; returns what changed, for people.

        Raises:
            ConfigError: it has errors; the config before it stays in force.
            StoreBusyError: it could not be stored; the config before it stays in force.
        """

    def subscribe(self) -> AbstractContextManager[MemoryObjectReceiveStream[tuple[Note, Now]]]:
        """The notes from now on; a subscriber that doesn't read misses notes and holds nobody up."""
