"""Devices and their readings, as values.

Rules: a device is known by its UUID (the index changes at reboot and is for display). A reading that failed makes a
device unavailable and says why; it is never 0 bytes and never a full device. All sizes are integers of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from boundd.catalogue.backends import BACKENDS, Backend
from boundd.core.model.host import THIS_NODE
from boundd.core.model.quarantines import Quarantine

UNKNOWN_NAME = "unknown NVIDIA device"
"""What a device is called that can't tell its name."""
UNKNOWN_PREFIX = "UNKNOWN-"
"""Begins the name of a device that can't tell its UUID."""
MISSING_PREFIX = "MISSING-"
"""Begins the name of a device that the config names by what is no UUID, and that isn't there."""


class DeviceState(StrEnum):
    """Whether cells may be placed on a device."""

    READY = "ready"
    CORDONED = "cordoned"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device at one instant.

    `total_bytes` and `free_bytes` are None exactly where `unavailable` says why. `process_bytes` maps host pids to the
    device memory that each holds; a value of None means that the driver doesn't tell, and None in its place means that
    the process list was not read this time. `max_cells` bounds the attempts at a time (1 for the CPU and for compute
    mode EXCLUSIVE_PROCESS, 0 for what never takes any, as a device divided into MIG instances); None means that memory
    alone decides.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    process_bytes: Mapping[int, int | None] | None = None
    max_cells: int | None = None
    unavailable: str = ""
    backend: str = "nvml"
    """nvml, cpu or simulated: numbers measured on a simulated device are named as such."""
    driver: str = ""
    driver_fault: str = ""
    """What the driver holds against the device's health: it is taken out of service whenever this text changes, and
    stays so until a person says `uncordon`."""
    remark: str = ""
    """What people should know of the numbers, such as that the memory is the host's."""
    unreadable: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Kinds of process lists (compute, graphics, MPS) that were asked for and could not be had, and why."""
    reserved_bytes: int | None = None
    """What of the memory in use is the driver's own; None where that isn't told."""
    node: str = THIS_NODE
    """The machine that the device is in, whose memory and cores its workers take."""
    parent: str = ""
    """Of a MIG instance, the UUID of the device that it is a part of."""
    slot: int | None = None
    """Of a MIG instance, its number there."""

    @property
    def kind(self) -> Backend:
        """What differs between kinds of devices."""
        return BACKENDS[self.backend]

    @property
    def is_simulated(self) -> bool:
        """Whether there is no such hardware; a fake driver says so in the device's name."""
        return self.backend == "simulated" or "simulated" in self.name.casefold()

    @property
    def is_placeholder(self) -> bool:
        """Whether it stands for a device of which not even the UUID is known."""
        return self.uuid.startswith((UNKNOWN_PREFIX, MISSING_PREFIX))

    @property
    def used_bytes(self) -> int:
        """Bytes in use; 0 for a device that could not be read (ask `unavailable` first)."""
        return (self.total_bytes or 0) - (self.free_bytes or 0)


@dataclass(frozen=True, slots=True)
class QuickDeath:
    """A cell died quickly on a device. `elsewhere` once it was seen to run on another."""

    device: str
    key: str
    at_boot_s: float
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the daemon knows it: its latest reading, and whether somebody took it out of service."""

    reading: DeviceReading
    quarantine: Quarantine | None = None
    """Set while it is out of service; people know it as a cordon."""
    observed_bytes: Mapping[str, int | None] = field(default_factory=dict)
    """Attempt id to the device memory that its processes hold, read in one pass with `free`; None: unknown."""

    @property
    def uuid(self) -> str:
        """The device's identity."""
        return self.reading.uuid

    @property
    def state(self) -> DeviceState:
        """Cordoned while it is in quarantine, unavailable by its reading, or ready."""
        if self.quarantine is not None:
            return DeviceState.CORDONED
        return DeviceState.UNAVAILABLE if self.reading.unavailable else DeviceState.READY
