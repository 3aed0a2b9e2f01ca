"""What is true in a simulated run, and what goes wrong in it: everything that the core can't know beforehand.

Times are seconds of the virtual clock; sizes are integers of bytes. A world is a value: the same
world, rules and seed give the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.cells import Cell, CellPolicy

FOR_EVER_S = float("inf")
RAMP = ((0.0, 0.1), (0.05, 0.5), (0.2, 1.0))
"""Memory over an attempt: the context first, then the weights, then the peak of the first batch. Each pair is a share
of the duration and the share of the peak that is held from there on."""


class Failure(StrEnum):
    """How an attempt fails that does not run out of memory."""

    BUG = "bug"
    """An exception: exit status 1."""
    SIGNAL = "signal"
    KILLED = "killed"
    """SIGKILL from outside: the host's out-of-memory killer, or a person."""
    HANG = "hang"
    """It goes on to its deadline."""
    NO_RESULT = "no_result"
    MALFORMED = "malformed"
    MODEL_UNAVAILABLE = "model_unavailable"
    BAD_DATA = "bad_data"
    NOT_STARTED = "not_started"
    SHIM_LOST = "shim_lost"
    """The shim dies and takes the worker with it: nobody is left to say how it ended."""


@dataclass(frozen=True, slots=True)
class Mishap:
    """One failure; `at` is the share of the duration after which it comes."""

    failure: Failure
    at: float = 0.5


@dataclass(frozen=True, slots=True)
class CellTruth:
    """How a cell really behaves, whatever is believed of it."""

    duration_s: float
    fixed_bytes: int
    """Held whatever the batch is: weights and CUDA context."""
    image_bytes: int = 0
    """Held for each image of the batch."""
    ramp: tuple[tuple[float, float], ...] = RAMP
    honours_cap: bool = True
    """False for a worker that takes what it wants, as somebody's own script does."""
    reports_memory: bool = True
    """Whether it writes how much it took, and, when it runs out, how much was asked for and free."""
    mishaps: tuple[Mishap, ...] = ()
    """What befalls its first attempts, one each."""
    always: Mishap | None = None
    """What befalls every attempt after those: a plain bug."""
    points: int = 0
    on_devices: Mapping[str, float] = field(default_factory=dict)
    """Durations by the name of the device, where they differ; `duration_s` on all others."""
    done: float = 0.0
    """The share of its work that the first attempt of a run begins with."""
    host_bytes: int = 0
    cores: int = 0

    def peak_bytes(self, batch_size: int | None) -> int:
        """The device memory that an attempt with this batch takes at its peak; a batch of None counts as 1."""
        return self.fixed_bytes + self.image_bytes * (batch_size or 1)

    def mishap_of(self, number: int) -> Mishap | None:
        """What befalls the attempt of this number, counted from 1."""
        return self.mishaps[number - 1] if number <= len(self.mishaps) else self.always


@dataclass(frozen=True, slots=True)
class SimCell:
    """A cell of the matrix, how it is to be run, and how it behaves."""

    cell: Cell
    policy: CellPolicy
    truth: CellTruth


@dataclass(frozen=True, slots=True)
class SimDevice:
    """A device. `speed` divides the durations of what runs on it."""

    uuid: str
    name: str
    total_bytes: int
    max_cells: int | None = None
    speed: float = 1.0
    backend: str = "nvml"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A process that is not boundd's: it takes this much, or what is free if that is less, and gives it back."""

    device: str
    from_s: float
    until_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Outage:
    """A device that can't be read. `kills`: it is lost, and its workers die with an error of their own."""

    device: str
    from_s: float
    until_s: float
    kills: bool = False
    why: str = "GPU is lost"


@dataclass(frozen=True, slots=True)
class Hitch:
    """Something outside the cells that is missing for a while: whoever starts meanwhile and needs it fails by it.

    `name` is the model of a hub's, the device of a device's, and empty for what every cell needs.
    """

    kind: ErrorKind
    from_s: float
    until_s: float
    name: str = ""
    takes_s: float = 2.0
    """How long an attempt takes to find out, where it has begun at all."""

    @property
    def at_start(self) -> bool:
        """Whether nothing is executed."""
        return self.kind in (ErrorKind.INTERPRETER, ErrorKind.HOST_LIMITS)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time."""

    from_s: float
    until_s: float

    def __contains__(self, at_s: float) -> bool:
        return self.from_s <= at_s < self.until_s


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with the machine, beside the cells."""

    foreign: tuple[Foreign, ...] = ()
    outages: tuple[Outage, ...] = ()
    sick: tuple[Outage, ...] = ()
    """Devices that can be read and on which every worker that is started meanwhile dies at once."""
    hitches: tuple[Hitch, ...] = ()
    probe_failures: tuple[Window, ...] = ()
    """The probe as a whole fails: no device can be read."""
    blind: tuple[Window, ...] = ()
    """The driver doesn't tell what each process holds."""


@dataclass(frozen=True, slots=True)
class World:
    """A machine, the cells, and what goes wrong."""

    devices: tuple[SimDevice, ...]
    cells: tuple[SimCell, ...]
    faults: Faults = field(default_factory=Faults)
    reading_interval_s: float = 1.0
    reading_lag_s: float = 0.0
    """How old a reading is when it arrives."""
    latency_s: float = 0.0
    """Everything that the daemon hears of, it hears up to so much later; how much is drawn from the seed."""
    contention: float = 0.0
    """How much cells on one device slow each other: n of them each run at 1 / (1 + contention x (n - 1))."""
    host_bytes: int = 0
    host_cores: int = 0
    host_used_bytes: int = 0
    """What others than boundd's workers hold of the host's memory."""
    start_s: float = 0.0
    """Where the virtual clock begins."""
